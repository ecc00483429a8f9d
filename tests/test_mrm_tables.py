"""The table of user reward models in the docs is what the committed reports say."""

import copy

from benchmarks import mrm_compare
from benchmarks.docs_pages import MRM_PAGE, replaced


def result(accuracy, gain):
    ends = {f"gain{kind}_{end}": gain + step for kind in ("", "_items") for end, step in
            (("low", -0.01), ("high", 0.01))}  # fmt: skip
    more = {"nll": 0.5, "flipped": 0.1234, "harmed": 0.25, "worst_10_split": 0.6,
            "swap_flipped": 0.401, "gain_best": -0.012, "gain_best_low": -0.02,
            "gain_best_high": -0.005}  # fmt: skip
    return {"accuracy": accuracy, "gain": gain, **more, **ends}


REPORT = {
    "users": {"train": 2000, "validation": 10, "test": 20},
    "seeds": 3,
    "validation_nll": {"bt": 0.6, "bayes": 0.5},
    "ceiling": {"accuracy": 0.75, "choices": 39.97},
    "new_users": {"bt": result(0.7, 0.0), "bayes": result(0.7263, 0.0263)},
    "new_items": {"bt": result(0.6, 0.0), "bayes": result(0.5901, -0.0099)},
    "new_users_new_items": {"bt": result(0.6, 0.0)},
}


def test_figures_are_those_of_the_report():
    text = mrm_compare.rendered({"jester": REPORT})
    rows = [line for line in text.splitlines() if "`bayes`" in line and line.startswith("|")]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert cells[0] == [
        "hierarchical Bayes (`bayes`)", "72.6", "**+2.6 (1.6 to 3.6) [1.6 to 3.6]**", "", "",
        "59.0", "-1.0 (-2.0 to 0.0) [-2.0 to 0.0]",
    ]  # fmt: skip
    assert cells[1] == [
        "hierarchical Bayes (`bayes`)", "-1.2 (-2.0 to -0.5)", "0.500", "12.3", "40.1", "25.0",
        "60.0",
    ]  # fmt: skip
    assert "2,000 training, 10 validation and 20 test users; 3 seeds." in text
    assert "The least validation loss on known items has `bayes`" in text
    assert "40 choices" in text
    changed = copy.deepcopy(REPORT)
    changed["new_users"]["bayes"]["accuracy"] = 0.7274
    assert mrm_compare.rendered({"jester": changed}) != text


def test_the_docs_show_the_committed_reports():
    reports = mrm_compare.load_reports()
    assert set(reports) == set(mrm_compare.PRESETS), "a report of a comparison is missing"
    text = MRM_PAGE.read_text(encoding="utf-8")
    assert replaced(text, mrm_compare.NAME, mrm_compare.rendered(reports)) == text, (
        "the tables in the docs are not those of the reports: python -m benchmarks mrm_compare"
    )
    for report in reports.values():
        for regime in mrm_compare.REGIMES:
            assert set(report[regime]) <= set(mrm_compare.METHODS)


def test_the_docs_show_the_other_splits():
    reports = mrm_compare.load_splits()
    text = MRM_PAGE.read_text(encoding="utf-8")
    table = mrm_compare.splits_table(reports)
    assert replaced(text, mrm_compare.SPLITS_NAME, table) == text
    for line in table.splitlines()[2:]:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        figures = reports[int(cells[0])]["new_users"][cells[1].strip("`")]
        key = {
            "no gate": "",
            "support choices": "gate_support_",
            "pairs to be ranked": "gate_pairs_",
        }
        start = key[cells[3]]
        assert cells[5] == f"{100 * figures[start + 'gain']:+.1f}"
        assert cells[6] == f"{100 * figures[start + 'harmed']:.1f}"


def test_every_method_has_a_name_in_the_table():
    from jaxalign.mrm import METHODS

    assert METHODS.keys() == set(mrm_compare.METHODS)
