"""`jaxalign generate`."""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxalign.commands.parser import Commands, check_drawing, command
from jaxalign.errors import InputError

if TYPE_CHECKING:
    from jaxalign.models.language import LanguageModel
    from jaxalign.models.sampling import Sampling

_SPAN = 8  # batches between two writes of a file of answers


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = command(
        commands, "generate", _generate, "answer a prompt on the terminal, or a file of them"
    )
    parser.add_argument(
        "--model", required=True, help="folder, file or name; with preferences a MOC policy's"
    )
    parser.add_argument("--adapter", type=Path, nargs="+", default=[], help="PEFT folders")
    parser.add_argument(
        "--weights", type=float, nargs="+", help="mix the adapters token by token, one weight each"
    )
    parser.add_argument(
        "--preference", help="what a MOC policy is told, such as helpful=0.3,humor=0.7"
    )
    prompts = parser.add_mutually_exclusive_group(required=True)
    prompts.add_argument("--prompt", help="one prompt; the answer appears as it is drawn")
    prompts.add_argument(
        "--prompts",
        type=Path,
        help="JSON lines with prompt or messages; adapter if several, preference if told",
    )
    parser.add_argument(
        "--chat", action="store_true", help="put prompts through the model's chat template"
    )
    parser.add_argument("--system", help="system message before every prompt; implies --chat")
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--min-tokens", type=int, default=0)
    parser.add_argument("--temperature", type=float, default=0.0, help="0: the likeliest (0)")
    parser.add_argument("--top-k", type=int)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", default="float32", help="float32 or bfloat16 (float32)")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--out", type=Path, help="JSON lines to write (to the terminal)")
    parser.add_argument("--resume", action="store_true", help="go on with an unfinished --out")


def _generate(arguments: argparse.Namespace, _: list[str]) -> None:
    from jaxalign.models.sampling import Sampling

    settings = Sampling(
        max_tokens=arguments.max_tokens,
        min_tokens=arguments.min_tokens,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
    )
    check_drawing(arguments)
    weights, count = arguments.weights, len(arguments.adapter)
    if weights is not None and len(weights) != count:
        raise InputError(
            f"--weights has {len(weights)} numbers for {count} adapters: give one each"
        )
    rows = read_prompts(arguments.prompts) if arguments.prompts else [{"prompt": arguments.prompt}]
    chats = [_chat(row, arguments) for row in rows]
    if arguments.preference is not None or any("preference" in row for row in rows):
        _answer_conditioned(arguments, settings, rows, chats)
        return
    which = _which(rows, arguments)
    from jaxalign.models.language import load_language_model

    model = load_language_model(arguments.model, arguments.dtype)
    stack = _adapters(arguments.adapter, model)
    if arguments.prompts:

        def policies(numbers: Sequence[int]) -> dict[str, Any]:
            return _policies(arguments, [which[number] for number in numbers], stack)

        _answer_file(arguments, model, settings, chats, policies)
    else:
        _answer_one(arguments, model, settings, chats[0], stack)


def _answer_conditioned(
    arguments: argparse.Namespace,
    settings: "Sampling",
    rows: list[dict[str, Any]],
    chats: list[Any],
) -> None:
    """Answers of a MOC policy, each prompt under its own preference."""
    import numpy as np

    if arguments.adapter:
        raise InputError(
            "--preference and --adapter are both given: a policy that is told preferences has an "
            "adapter of its own; give one of them"
        )
    from jaxalign.experiments.moc._evaluate import policy_folder
    from jaxalign.moc.files import load
    from jaxalign.personalize.policies import Conditioned

    policy = load(policy_folder(arguments.model), dtype=arguments.dtype)
    preferences = np.array(
        [_preference(arguments, number, row, policy.names) for number, row in enumerate(rows, 1)]
    )
    policies = Conditioned(policy, np.eye(len(policy.names)))
    prompts = [policies.prompt(*pair) for pair in zip(chats, preferences, strict=True)]
    batch = policies.stacked(preferences)
    if arguments.prompts:
        _answer_file(arguments, policy.model, settings, prompts, batch.arguments)
    else:
        _streamed(arguments, policy.model, settings, prompts[0], batch.arguments([0]))


def _preference(
    arguments: argparse.Namespace, number: int, row: dict[str, Any], names: tuple[str, ...]
) -> Any:
    """The preference [R] of a row, its own or that of all."""
    from jaxalign.moc.preferences import parse_preference

    own = row.get("preference", arguments.preference)
    where = f"{arguments.prompts}, row {number}: " if "preference" in row else ""
    if isinstance(own, dict):
        own = ",".join(f"{name}={share}" for name, share in own.items())
    if not isinstance(own, str):
        raise InputError(
            f"{arguments.prompts}, row {number}: found the preference {own!r}, expected text such "
            f"as {names[0]}=1; add one to each row, or --preference for those without"
        )
    try:
        return parse_preference(own, names)
    except InputError as error:
        raise InputError(f"{where}{error}") from None


def read_prompts(path: Path) -> list[dict[str, Any]]:
    """Rows of a prompt file: JSON objects with `prompt` or `messages`, perhaps more about them.

    Raises:
        InputError: no such file, no rows, or a row that is something else, with its line.
    """
    from jaxalign.commands.parser import read_lines

    if path.suffix != ".jsonl":
        return [{"prompt": line} for line in read_lines(path)]
    if not path.is_file():
        raise InputError(f"{path} does not exist")
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(path.read_text("utf-8").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}, line {number}: not JSON ({error.msg}); correct it") from None
        if not isinstance(row, dict) or ("prompt" in row) == ("messages" in row):
            raise InputError(
                f"{path}, line {number}: found {line[:60]!r}, expected an object with either "
                "prompt or messages"
            )
        rows.append(row)
    if not rows:
        raise InputError(f"{path} is empty: expected JSON lines with prompt or messages")
    return rows


def _which(rows: list[dict[str, Any]], arguments: argparse.Namespace) -> list[int]:
    """The adapter of each row, -1 for none."""
    names = {str(path): place for place, path in enumerate(arguments.adapter)}
    names |= {path.name: place for place, path in enumerate(arguments.adapter)}
    places = []
    for number, row in enumerate(rows, 1):
        name = row.get("adapter")
        if name is None and len(arguments.adapter) > 1 and arguments.weights is None:
            if arguments.prompts:
                raise InputError(
                    f"{arguments.prompts}, row {number}: no adapter named, and there are "
                    f"{len(arguments.adapter)}: add an `adapter` to each row, or mix by --weights"
                )
            return [-1]  # one prompt: every adapter answers in turn
        if name is not None and name not in names:
            known = ", ".join(path.name for path in arguments.adapter) or "none: give --adapter"
            raise InputError(
                f"{arguments.prompts}, row {number}: adapter {name!r} is not among {known}"
            )
        places.append(names[name] if name is not None else len(arguments.adapter) - 1)
    return places


def _adapters(folders: list[Path], model: "LanguageModel") -> Any:
    from jaxalign.models import lora
    from jaxalign.models.peft import load_adapter

    found = [load_adapter(folder, model.config) for folder in folders]
    return lora.stack([lora.scaled(tree, config) for config, tree in found]) if found else None


def _chat(row: dict[str, Any], arguments: argparse.Namespace) -> Any:
    if "messages" in row:
        return row["messages"]
    if not arguments.chat and arguments.system is None:
        return row["prompt"]
    first = [{"role": "system", "content": arguments.system}] if arguments.system else []
    return [*first, {"role": "user", "content": row["prompt"]}]


def _policies(arguments: argparse.Namespace, which: list[int], stack: Any) -> dict[str, Any]:
    """Adapters of some rows as `generate_texts` and `stream` take them."""
    import numpy as np

    from jaxalign.models.generate import PolicyMixture

    if stack is None:
        return {}
    if arguments.weights is None:
        return {"adapters": stack, "rows": np.asarray(which, np.int32)}
    weights = np.tile(np.asarray(arguments.weights, np.float32), (len(which), 1))
    rows = np.tile(np.arange(weights.shape[1], dtype=np.int32), (len(which), 1))
    return {"adapters": stack, "combine": PolicyMixture(weights, rows)}


def _answer_one(
    arguments: argparse.Namespace,
    model: "LanguageModel",
    settings: "Sampling",
    chat: Any,
    stack: Any,
) -> None:
    apart = len(arguments.adapter) > 1 and arguments.weights is None
    for place in range(len(arguments.adapter)) if apart else [len(arguments.adapter) - 1]:
        if apart:
            print(f"[{arguments.adapter[place].name}]")
        _streamed(arguments, model, settings, chat, _policies(arguments, [place], stack))


def _streamed(
    arguments: argparse.Namespace,
    model: "LanguageModel",
    settings: "Sampling",
    chat: Any,
    policies: Mapping[str, Any],
) -> None:
    import jax

    from jaxalign.models.stream import stream

    # All of the soft tokens are the one prompt's own.
    known = {name: value for name, value in policies.items() if name != "prefix_lengths"}
    for piece in stream(model, chat, settings, jax.random.key(arguments.seed), **known):
        print(piece, end="", flush=True)
    print()


def _answer_file(
    arguments: argparse.Namespace,
    model: "LanguageModel",
    settings: "Sampling",
    chats: list[Any],
    policies: Callable[[Sequence[int]], Mapping[str, Any]],
) -> None:
    """Answers in spans; a file grows aside and is renamed when whole."""
    import jax

    from jaxalign.models.chat import generate_texts

    part = None
    done = 0
    span = _SPAN * arguments.batch_size
    if arguments.out:
        part = arguments.out.with_name(f".{arguments.out.name}.part")
        done = _kept(part, span) if arguments.resume else 0
        part.parent.mkdir(parents=True, exist_ok=True)
        if not done:
            part.write_text("")
    for first in range(done, len(chats), span):
        rows = range(first, min(first + span, len(chats)))
        answers = generate_texts(
            model,
            [chats[row] for row in rows],
            settings,
            jax.random.fold_in(jax.random.key(arguments.seed), first),
            batch_size=arguments.batch_size,
            **policies(rows),
        )
        lines = "".join(_line(row, answer) for row, answer in zip(rows, answers, strict=True))
        if part is None:
            sys.stdout.write(lines)
            sys.stdout.flush()
        else:
            with part.open("a", encoding="utf-8") as file:
                file.write(lines)
    if part is not None:
        part.replace(arguments.out)
        print(f"{len(chats)} answers; wrote {arguments.out}", file=sys.stderr)


def _kept(part: Path, span: int) -> int:
    """Rows of an unfinished file that make whole spans; what follows them is cut off."""
    if not part.is_file():
        return 0
    lines = part.read_text("utf-8").splitlines(keepends=True)
    whole = len(lines) // span * span
    part.write_text("".join(lines[:whole]), encoding="utf-8")
    return whole


def _line(row: int, answer: Any) -> str:
    found = {
        "row": row,
        "text": answer.text,
        "tokens": len(answer.tokens),
        "prompt_tokens": answer.prompt_tokens,
        "logprob": round(float(answer.logprobs.sum()), 6),
        "stopped": answer.stopped,
    }
    return json.dumps(found, ensure_ascii=False) + "\n"
