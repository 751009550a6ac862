"""The `llm-tt` command: `routes` prints or saves the graph of a prompt, `lens` how tokens fare through the layers, `check` says whether a model
can be trusted here."""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from llm_tt.config import ModelSpec, load_config
from llm_tt.errors import LlmTtError, RequestError
from llm_tt.flow.graph import DEFAULT_THRESHOLD, FlowGraph
from llm_tt.lens.layer_tables import Trajectories
from llm_tt.text import ChatMessage


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status: 0, 1 when the user has to change something, 130 after an interrupt."""
    options = _parser().parse_args(arguments)
    _quiet()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Files are UTF-8 wherever they are written; text for the screen must not fail on a letter the screen lacks.
        if getattr(options, "json", False) or getattr(options, "graphml", False):
            sys.stdout.reconfigure(encoding="utf-8")
        else:
            sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status = options.run(options)
        sys.stdout.flush()
        return status
    except LlmTtError as error:
        print(f"llm-tt: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader of our output has gone, as in `llm-tt routes ... | head`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="llm-tt", description="How information flows through a language model for one prediction.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    routes = commands.add_parser("routes", help="the information-flow routes to one prediction")
    routes.add_argument("model", metavar="MODEL", help='"demo", a folder, a hub name, or a name in --config')
    _add_prompt(routes)
    routes.add_argument("--target", type=int, default=-1, help="position of the token whose prediction is explained (default -1, the last)")
    routes.add_argument("--threshold", type=float, default=DEFAULT_THRESHOLD, help="keep edges above this (default %(default)s)")
    routes.add_argument("--no-renormalize", action="store_true", help="leave contributions as they were before edges were dropped")
    output = routes.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print the graph as JSON")
    output.add_argument("--graphml", action="store_true", help="print the graph as GraphML")
    output.add_argument("--html", metavar="FILE", type=Path, help="write a standalone page")
    _add_model_options(routes)
    routes.set_defaults(run=_routes)

    lens = commands.add_parser("lens", help="tokens on their way through the layers, at one position")
    lens.add_argument("model", metavar="MODEL", help='"demo", a folder, a hub name, or a name in --config')
    _add_prompt(lens)
    lens.add_argument("--position", type=int, default=-1, help="position of the token after which is predicted (default -1, the last)")
    lens.add_argument(
        "--token", metavar="TEXT", action="append", default=[], help="follow this token too, exactly as it is written; may be repeated"
    )
    lens.add_argument("--no-normalize", action="store_true", help="unembed every layer as it is, without the final norm")
    lens.add_argument("--json", action="store_true", help="print logits, probabilities and ranks as JSON")
    _add_model_options(lens)
    lens.set_defaults(run=_lens)

    check = commands.add_parser("check", help="whether a model can be trusted here, and what its tuning changed")
    check.add_argument("model", metavar="MODEL", help='"demo", a folder, a hub name, or a name in --config')
    check.add_argument("--base", metavar="BASE", help='the model it was tuned from: folder, hub name or "demo"')
    check.add_argument("--json", action="store_true", help="print everything as JSON")
    _add_model_options(check)
    check.set_defaults(run=_check)
    return parser


def _add_prompt(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", metavar="PROMPT", help='the text; "-" reads it from standard input')
    parser.add_argument("--chat", action="store_true", help="PROMPT is the user's turn, written by the model's chat template")
    parser.add_argument("--system", metavar="TEXT", help="with --chat: a system prompt")


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--adapter", metavar="DIR", help="merge this PEFT adapter into the model")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default auto)")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"], help="precision (default auto)")
    parser.add_argument("--config", metavar="FILE", help="configuration whose names may be used for MODEL")


def _quiet() -> None:
    """Keep the libraries' notes out of the output; errors still come through."""
    logging.getLogger().setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def _model(options: argparse.Namespace) -> str | ModelSpec:
    configured: dict[str, ModelSpec] = load_config(options.config).models if options.config else {}
    return configured.get(options.model) or options.model


def _conversation(prompt: str, system: str | None) -> list[ChatMessage]:
    turn = ChatMessage("user", prompt)
    return [turn] if system is None else [ChatMessage("system", system), turn]


def _prompt(options: argparse.Namespace) -> str | list[ChatMessage]:
    prompt = options.prompt
    if options.system is not None and not options.chat:
        raise RequestError("--system is a part of a conversation. Add --chat, or put the text into PROMPT.")
    if prompt == "-":
        try:
            prompt = sys.stdin.buffer.read().decode().rstrip("\n")
        except UnicodeDecodeError as error:
            raise RequestError(f"Standard input is not UTF-8 text (byte {error.start}). Convert it to UTF-8.") from error
    return _conversation(prompt, options.system) if options.chat else prompt


def _routes(options: argparse.Namespace) -> int:
    prompt = _prompt(options)
    from llm_tt.export import files
    from llm_tt.flow.routes import extract_routes
    from llm_tt.models import load_model

    llm = load_model(_model(options), adapter=options.adapter, device=options.device, dtype=options.dtype)
    trace = llm.trace(prompt)

    graph = extract_routes(trace, options.target, options.threshold, not options.no_renormalize)
    if options.json:
        print(files.to_json(graph, llm.info.name, trace.prompt), end="")
    elif options.graphml:
        print(files.to_graphml(graph, llm.info.name), end="")
    elif options.html:
        try:
            options.html.write_text(files.to_html(graph, llm.info.name), encoding="utf-8")
        except OSError as error:
            raise RequestError(f'Cannot write "{options.html}": {error.strerror}. Name a file in an existing folder.') from error
        print(f"Wrote {options.html}: {graph.n_edges} edges")
    else:
        from llm_tt.lens.vocabulary import predictions

        best = predictions(trace, graph.target, 5)
        assert best.probabilities is not None
        print(f"After {graph.token_texts[graph.target]!r} (token {graph.target}), {llm.info.name} predicts:")
        for text, probability in zip(best.texts, best.probabilities, strict=True):
            print(f"  {probability:6.3f}  {text!r}")
        print()
        print(_as_text(graph))
    return 0


def _as_text(graph: FlowGraph) -> str:
    """The routes as lines of text, from the last layer down."""
    lines = [f"{graph.n_edges} edges above {graph.threshold}" + (", renormalised" if graph.renormalized else "")]
    for edge in graph.edges():
        source, destination = edge.ends
        heads = ", ".join(f"head {head} {weight:.3f}" for head, weight in edge.heads.items())
        tokens = repr(graph.token_texts[edge.source])
        if edge.source != edge.destination:
            tokens += f" -> {graph.token_texts[edge.destination]!r}"
        lines.append(
            f"{source.name:>8} -> {destination.name:<8} {edge.kind.key:<9} {edge.weight:.3f}  {tokens}" + (f"  ({heads})" if heads else "")
        )
    return "\n".join(lines)


def _lens(options: argparse.Namespace) -> int:
    prompt = _prompt(options)
    from llm_tt.lens.grid import token_trajectories
    from llm_tt.lens.vocabulary import predictions
    from llm_tt.models import load_model

    llm = load_model(_model(options), adapter=options.adapter, device=options.device, dtype=options.dtype)
    trace = llm.trace(prompt)
    best = predictions(trace, options.position, 5).token_ids.tolist()
    lines = token_trajectories(trace, options.position, [*best, *options.token], normalize=not options.no_normalize)
    if options.json:
        print(
            json.dumps(
                {"model": llm.info.name, "token": trace.token_texts[lines.position], **lines.to_dict()}, indent=2, ensure_ascii=False
            )
        )
        return 0
    print(f"After {trace.token_texts[lines.position]!r} (token {lines.position}), probability (rank) at each point of {llm.info.name}:")
    print()
    print(_as_table(lines))
    return 0


def _as_table(lines: Trajectories) -> str:
    """One row a point, the last layer on top as in the graph; one column a token."""
    table = [["", *map(repr, lines.texts)]]
    for row in reversed(range(len(lines.points))):
        numbers = zip(lines.probabilities[row].tolist(), lines.ranks[row].tolist(), strict=True)
        table.append([lines.nodes[row], *(f"{probability:.3f} ({rank})" for probability, rank in numbers)])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in table)


def _check(options: argparse.Namespace) -> int:
    from llm_tt.check import check

    report = check(_model(options), adapter=options.adapter, base=options.base, device=options.device, dtype=options.dtype)
    if options.json:
        print(json.dumps(report.to_dict(), indent=2, ensure_ascii=False, allow_nan=False))
    elif report.is_empty:
        print(f"llm-tt: {report.failure}", file=sys.stderr)
    else:
        print(report.to_text())
    return 0 if report.ok else 1
