"""HelpSteer3's preferences: two responses and by how much one is better."""

from collections.abc import Iterator, Mapping

from jaxalign.data.importers.registry import ImportOptions, each_row, refuse, register_format
from jaxalign.data.importers.rows import ChoiceRow, Imported, has_fields, plain
from jaxalign.data.messages import check_messages
from jaxalign.data.tables import Row


def _recognise(values: Mapping[str, object]) -> bool:
    return has_fields(values, "context", "response1", "response2", "overall_preference")


@register_format("helpsteer3", "HelpSteer3 preferences (nvidia/HelpSteer3)", _recognise)
@each_row
def read_helpsteer(row: Row, options: ImportOptions) -> Iterator[Imported]:
    """Read a row: -3 says that the first response is much better, 3 the second, 0 neither.

    The annotators are not named, so that `overall_preference`, their consensus, is one choice.
    """
    preference = row.number("overall_preference")
    if preference != int(preference) or abs(preference) > 3:
        raise refuse(row, "overall_preference", f"{preference:g}", "a whole number from -3 to 3")
    context = check_messages(row.values.get("context"), "context", row.where)
    answers = [row.text("response1"), row.text("response2")]
    if preference > 0:
        answers.reverse()
    yield ChoiceRow(
        user=options.user_of(row),
        prompt=plain(context, "user"),
        chosen=answers[0],
        rejected=answers[1],
        tie=True if preference == 0 else None,
        strength=abs(preference) or None,
        group=row.identifier("id") if row.has("id") else None,
    )
