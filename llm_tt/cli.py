"""The `llm-tt` command: `routes` gives the graph of a prompt, `heads`, `neurons` and `lens` what its nodes are made of and say, `effects` what
speaks for and against a token, `saliency` what other methods say, `compare` what differs between two models or texts, `generate` what the model
puts out, `evaluate` how often it is right, `check` whether to trust a model."""

from __future__ import annotations

import argparse
import codecs
import copy
import io
import json
import logging
import math
import os
import re
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from llm_tt.analysis.saliency_report import METHODS, Saliency
from llm_tt.config import ModelSpec, load_config
from llm_tt.errors import LlmTtError, RequestError
from llm_tt.flow.graph import DEFAULT_THRESHOLD, FlowGraph
from llm_tt.lens.layer_tables import Trajectories
from llm_tt.models.continuation import Continuation
from llm_tt.text import ChatMessage

if TYPE_CHECKING:
    from llm_tt.analysis.comparison import Comparison
    from llm_tt.analysis.evaluation_report import EvaluationComparison, EvaluationReport, Table
    from llm_tt.analysis.rows import DataSet, Row, Template
    from llm_tt.analysis.scoring import Scoring
    from llm_tt.analysis.strategies import Strategy
    from llm_tt.analysis.strategy_report import StrategyComparison
    from llm_tt.models.transparent_llm import Trace, TransparentLlm

_N_SOURCES = 5
_N_PREDICTIONS = 10
"""in the JSON of a graph"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status: 0, 1 when the user has to change something, 130 after an interrupt."""
    options = _parser().parse_args(arguments)
    _quiet()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Files are UTF-8 wherever they are written; text for the screen must not fail on a letter the screen lacks.
        if any(getattr(options, name, False) for name in ("json", "graphml", "node_link", "csv")):
            # Lines end as the file's format has it.
            sys.stdout.reconfigure(encoding="utf-8", newline="")
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
    _add_prompt(routes)
    routes.add_argument("--target", type=int, help="position of the token whose prediction is explained (default -1, the last)")
    several = routes.add_mutually_exclusive_group()
    several.add_argument("--span", metavar="FIRST", type=int, help="explain all positions from this one to the target at once")
    several.add_argument("--answer", action="store_true", help="with --generate: explain all tokens of the answer at once")
    kept = routes.add_mutually_exclusive_group()
    kept.add_argument("--threshold", type=float, default=DEFAULT_THRESHOLD, help="keep edges above this (default %(default)s)")
    kept.add_argument("--mass", type=float, help="keep the smallest graph that carries this share of the flow, for example 0.9")
    routes.add_argument("--no-renormalize", action="store_true", help="leave contributions as they were before edges were dropped")
    output = routes.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print the graph as JSON")
    output.add_argument("--graphml", action="store_true", help="print the graph as GraphML")
    output.add_argument("--node-link", action="store_true", help="print the graph as node-link JSON, which networkx reads")
    output.add_argument("--csv", action="store_true", help="print the edges as CSV")
    output.add_argument("--html", metavar="FILE", type=Path, help="write a standalone page")
    _add_model_options(routes)
    routes.set_defaults(run=_routes)

    effects = commands.add_parser("effects", help="what raises and what lowers a token's logit, or its lead over another token")
    _add_prompt(effects)
    effects.add_argument(
        "--target", type=int, default=-1, help="position of the token whose prediction is explained (default -1, the last)"
    )
    effects.add_argument("--token", metavar="TEXT", help='the token to explain, as " Mary" or id:42 (default: the model\'s first choice)')
    effects.add_argument("--contrast", metavar="TEXT", help="why that token and not this one: explain the difference of their logits")
    effects.add_argument("--json", action="store_true", help="print the effects of all parts as JSON, heads by the token they read")
    _add_model_options(effects)
    effects.set_defaults(run=_effects)

    heads = commands.add_parser("heads", help="what each attention head contributes at one token, the largest first")
    _add_prompt(heads)
    heads.add_argument("--target", type=int, default=-1, help="position of the token whose column is shown (default -1, the last)")
    heads.add_argument("--layer", type=int, help="this layer only; negative counts from the last")
    heads.add_argument("--json", action="store_true", help="print the heads as JSON")
    _add_model_options(heads)
    heads.set_defaults(run=_heads)

    neurons = commands.add_parser("neurons", help="the neurons of one layer that contribute most at one token, with their direct effects")
    _add_prompt(neurons)
    neurons.add_argument("--layer", type=int, required=True, help="the layer; negative counts from the last")
    neurons.add_argument("--position", type=int, default=-1, help="position of the token (default -1, the last)")
    neurons.add_argument("--top", type=_count, default=20, help="how many neurons (default %(default)s)")
    neurons.add_argument(
        "--token", metavar="TEXT", help='the token whose logit effects are on, as " Mary" or id:42 (default: the model\'s first choice)'
    )
    neurons.add_argument("--contrast", metavar="TEXT", help="effects on how far that token is above this one")
    neurons.add_argument(
        "--by",
        choices=["contribution", "effect"],
        default="contribution",
        help="order by contribution (default), or by the size of the effect",
    )
    neurons.add_argument("--json", action="store_true", help="print the neurons as JSON")
    _add_model_options(neurons)
    neurons.set_defaults(run=_neurons)

    lens = commands.add_parser("lens", help="tokens on their way through the layers, at one position")
    _add_prompt(lens)
    lens.add_argument("--position", type=int, default=-1, help="position of the token after which is predicted (default -1, the last)")
    lens.add_argument(
        "--token", metavar="TEXT", action="append", default=[], help='follow this token too, as " Mary" or id:42; may be repeated'
    )
    lens.add_argument("--no-normalize", action="store_true", help="unembed every layer as it is, without the final norm")
    lens.add_argument("--json", action="store_true", help="print logits, probabilities and ranks as JSON")
    _add_model_options(lens)
    lens.set_defaults(run=_lens)

    saliency = commands.add_parser("saliency", help="what other methods say a prediction goes by, and which of them holds good")
    _add_prompt(saliency)
    saliency.add_argument(
        "--target", type=int, default=-1, help="position of the token whose prediction is explained (default -1, the last)"
    )
    saliency.add_argument("--token", metavar="TEXT", help='the token to explain, as " Mary" or id:42 (default: the model\'s first choice)')
    saliency.add_argument("--contrast", metavar="TEXT", help="explain why that token and not this one")
    saliency.add_argument("--methods", nargs="+", metavar="METHOD", default=METHODS, help=f"some of: {', '.join(METHODS)} (default all)")
    saliency.add_argument("--unit", default="token", choices=["token", "word"], help="what is taken out and scored (default %(default)s)")
    saliency.add_argument("--samples", type=int, default=256, help="prompts for LIME and Kernel SHAP each (default %(default)s)")
    saliency.add_argument("--steps", type=int, default=256, help="points of integrated gradients (default %(default)s)")
    saliency.add_argument("--removed", type=int, default=10, help="how many are taken out at most, for the test (default %(default)s)")
    saliency.add_argument("--seed", type=int, default=0, help="of samples and random orders (default %(default)s)")
    saliency.add_argument(
        "--threshold", type=float, default=DEFAULT_THRESHOLD, help="of the routes whose flow is scored (default %(default)s)"
    )
    written = saliency.add_mutually_exclusive_group()
    written.add_argument("--json", action="store_true", help="print scores, deletion curves and correlations as JSON")
    written.add_argument("--csv", action="store_true", help="print them as CSV")
    _add_model_options(saliency)
    saliency.set_defaults(run=_saliency)

    generate = commands.add_parser("generate", help="let the model continue a prompt, each token as it comes")
    _add_prompt(generate, may_continue=False)
    generate.add_argument("--tokens", type=_count, default=20, help="how many tokens at most (default %(default)s)")
    generate.add_argument("--temperature", type=float, default=0.0, help="sample, with logits divided by this (default 0, greedy)")
    generate.add_argument("--top-k", type=int, help="with a temperature: draw only from this many first choices")
    generate.add_argument("--top-p", type=float, help="with a temperature: draw only from the fewest first choices of this probability")
    generate.add_argument("--seed", type=int, default=0, help="the same seed draws the same text again (default %(default)s)")
    generate.add_argument("--json", action="store_true", help="print ids, texts, probabilities and ranks as JSON")
    _add_model_options(generate)
    generate.set_defaults(run=_generate)

    compare = commands.add_parser("compare", help="what differs between two models on one text, or between two texts in one model")
    _add_prompt(compare, may_continue=False)
    compare.add_argument(
        "--generate", metavar="N", type=_count, help="also let both continue their text greedily by up to N tokens, and mark what differs"
    )
    compare.add_argument("--with", dest="other_model", metavar="MODEL", help="the second model, such as one tuned from the first")
    compare.add_argument("--with-adapter", dest="other_adapter", metavar="ADAPTER", help="the first model with this adapter is the second")
    compare.add_argument("--with-prompt", dest="other_prompt", metavar="TEXT", help="the second text")
    compare.add_argument("--target", type=int, default=-1, help="position in the first text that is explained (default -1, the last)")
    compare.add_argument(
        "--token", metavar="TEXT", help="the token that direct effects are on (default: the second's first choice, and why not the first's)"
    )
    compare.add_argument("--contrast", metavar="TEXT", help="effects on how far that token is above this one")
    kept = compare.add_mutually_exclusive_group()
    kept.add_argument("--threshold", type=float, default=DEFAULT_THRESHOLD, help="of both graphs (default %(default)s)")
    kept.add_argument("--mass", type=float, help="make each graph the smallest that carries this share of the flow, for example 0.9")
    compare.add_argument("--top", type=_count, default=10, help="how many edges (default %(default)s)")
    compare.add_argument("--json", action="store_true", help="print everything as JSON")
    _add_model_options(compare)
    compare.set_defaults(run=_compare)
    evaluate = commands.add_parser("evaluate", help="how often a model is right on a data set, and where it is not; two models compared")
    evaluate.add_argument("model", metavar="MODEL", help='"demo", a folder, a hub name, or a name in --config')
    evaluate.add_argument("data", metavar="DATA", help=".jsonl, .json, .csv, .tsv or .parquet, or a folder saved by the library datasets")
    evaluate.add_argument(
        "--template", metavar="TEXT", required=True, help='the prompt, with columns in braces: "Review: {text} Sentiment:"'
    )
    evaluate.add_argument("--chat", action="store_true", help="the template is the user's turn, written by the model's chat template")
    evaluate.add_argument("--system", metavar="TEXT", help="with --chat: a system prompt")
    evaluate.add_argument("--labels", metavar="A,B", help="label words, the positive one first; 1=yes,0=no where the data says 1 and 0")
    evaluate.add_argument("--label-column", default="label", help="the column with the right answer (default %(default)s)")
    evaluate.add_argument(
        "--score",
        choices=["labels", "forced", "generate"],
        default="labels",
        help="by the labels' probabilities (default), teacher-forced on the response, or by what is generated",
    )
    evaluate.add_argument("--calibrate", action="store_true", help="divide by the labels' probabilities after a prompt that says nothing")
    evaluate.add_argument("--spelling", metavar="TEXT", action="append", help='how a response is written, as " {}"; may be repeated')
    evaluate.add_argument("--tokens", type=_count, help="of a generated answer: at most so many (default 16; structured: 48)")
    evaluate.add_argument("--pattern", metavar="REGEX", help="with --score generate: its first group is the label")
    evaluate.add_argument("--json-field", metavar="NAME", help="with --score generate or structured: this JSON field is the label")
    evaluate.add_argument("--schema", metavar="FILE", type=Path, help="with a JSON field: the JSON schema that the answer must fit")
    evaluate.add_argument(
        "--strategies",
        "--strategy",
        metavar="A,B",
        action="append",
        help="ways to ask, compared on the same rows: zero-shot, few-shot, step-by-step, structured",
    )
    evaluate.add_argument("--shots", metavar="K", type=_count, help="few-shot: so many examples of each label, drawn with --seed")
    evaluate.add_argument("--shot-rows", metavar="N,N", help="few-shot: the rows with these numbers are the examples")
    evaluate.add_argument("--train", metavar="FILE", help="few-shot: where examples come from (default DATA; examples are not evaluated)")
    evaluate.add_argument("--reason-tokens", metavar="N", type=_count, help="step-by-step: reason in at most so many tokens (default 64)")
    evaluate.add_argument("--reason-ask", metavar="TEXT", help="step-by-step: follows the reasoning, and the label follows it")
    evaluate.add_argument(
        "--reason-instruction", metavar="TEXT", help='step-by-step: makes the model reason, as "Let\'s think step by step."'
    )
    evaluate.add_argument(
        "--reason-parse", action="store_true", help='step-by-step: read the label from "Answer: ..." in the reasoning itself'
    )
    evaluate.add_argument("--slice", metavar="COLUMN", action="append", default=[], help="accuracy by this column; may be repeated")
    evaluate.add_argument("--word", metavar="WORD", action="append", default=[], help="accuracy with and without it; may be repeated")
    evaluate.add_argument("--compare", metavar="OTHER", help="evaluate this model too, and compare")
    evaluate.add_argument("--explain", action="store_true", help="trace rows of the most frequent error: which words and heads made them")
    evaluate.add_argument("--limit", metavar="N", type=_count, help="only the first N rows")
    evaluate.add_argument("--seed", type=int, default=0, help="of the intervals (default %(default)s)")
    evaluate.add_argument("--out", metavar="FOLDER", type=Path, help="write results as they come, and at the end CSV and HTML")
    evaluate.add_argument("--json", action="store_true", help="print everything as JSON")
    _add_model_options(evaluate)
    evaluate.set_defaults(run=_evaluate)

    check = commands.add_parser("check", help="whether a model can be trusted here, and what its tuning changed")
    check.add_argument("model", metavar="MODEL", help='"demo", a folder, a hub name, or a name in --config')
    check.add_argument("--base", metavar="BASE", help='the model it was tuned from: folder, hub name or "demo"')
    check.add_argument("--json", action="store_true", help="print everything as JSON")
    _add_model_options(check)
    check.set_defaults(run=_check)
    return parser


def _add_prompt(parser: argparse.ArgumentParser, may_continue: bool = True) -> None:
    parser.add_argument("model", metavar="MODEL", help='"demo", a folder, a hub name, or a name in --config')
    parser.add_argument("prompt", metavar="PROMPT", help='the text; "-" reads it from standard input')
    parser.add_argument("--chat", action="store_true", help="PROMPT is the user's turn, written by the model's chat template")
    parser.add_argument("--system", metavar="TEXT", help="with --chat: a system prompt")
    if may_continue:
        parser.add_argument(
            "--generate",
            metavar="N",
            type=_count,
            help="let the model continue the prompt greedily by up to N tokens, which are traced too",
        )


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'"{text}" is not a number of 1 or more')
    return int(text)


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--adapter", metavar="DIR", help="merge this PEFT adapter into the model")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps, balanced, offload (default auto)")
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


def _read_prompt(options: argparse.Namespace) -> tuple[TransparentLlm, str | list[ChatMessage]]:
    """The model of the options, and their prompt, which is then `options.prompt` wherever it came from."""
    if options.system is not None and not options.chat:
        raise RequestError("--system is a part of a conversation. Add --chat, or put the text into PROMPT.")
    if options.prompt == "-":
        try:
            options.prompt = sys.stdin.buffer.read().decode().rstrip("\n")
        except UnicodeDecodeError as error:
            raise RequestError(f"Standard input is not UTF-8 text (byte {error.start}). Convert it to UTF-8.") from error
    prompt = options.prompt
    from llm_tt.models import load_model

    llm = load_model(_model(options), adapter=options.adapter, device=options.device, dtype=options.dtype)
    return llm, _conversation(prompt, options.system) if options.chat else prompt


def _trace(options: argparse.Namespace) -> Trace:
    """The model of the options, run once over their prompt and what it generates after it."""
    llm, prompt = _read_prompt(options)
    if options.generate is None:
        return llm.trace(prompt)
    from llm_tt.models.generation import generate

    return llm.trace(prompt, continuation=[token.token_id for token in generate(llm, prompt, options.generate)])


_STOPS = {"end": "The model ended the sequence", "length": "As many tokens as were asked for"}


def _generate(options: argparse.Namespace) -> int:
    llm, prompt = _read_prompt(options)
    from llm_tt.models.generation import generate

    received = llm.prompt(prompt)
    sampling = {name: getattr(options, name) for name in ("temperature", "top_k", "top_p", "seed")}
    decoder, tokens = codecs.getincrementaldecoder("utf-8")("replace"), []
    for token in generate(llm, prompt, options.tokens, **sampling):
        tokens.append(token)
        if not options.json:
            print(decoder.decode(token.data), end="", flush=True)
    made = Continuation.of(received.n_tokens, tokens)
    if options.json:
        columns = (made.token_ids, made.token_texts, made.probabilities, made.ranks)
        names = ("id", "text", "probability", "rank")
        content = {"model": llm.info.name, "prompt": received.text, "prompt_ids": received.token_ids, **sampling, "text": made.text}
        content |= {"start": made.start, "tokens": [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]}
        _print_json({**content, "stop": made.stop})
        return 0
    print(decoder.decode(b"", final=True))
    assert made.stop is not None
    print(f"llm-tt: {_STOPS[made.stop]} ({len(made)}).", file=sys.stderr)
    return 0


def _routes(options: argparse.Namespace) -> int:
    if options.answer and options.generate is None:
        raise RequestError("--answer is about what the model generates. Add --generate N, or name positions with --span and --target.")
    if options.answer and options.target is not None:
        raise RequestError(f"--answer ends with the answer, so that --target {options.target} cannot be its end. Use --span with --target.")
    trace = _trace(options)
    llm = trace.model
    from llm_tt.export import files
    from llm_tt.flow.routes import extract_routes_by_mass, extract_routes_to_span

    targets, renormalize = _targets(options, trace), not options.no_renormalize
    if options.mass is None:
        graph = extract_routes_to_span(trace, targets, options.threshold, renormalize)
    else:
        graph = extract_routes_by_mass(trace, targets, options.mass, renormalize)
    if options.json:
        from llm_tt.lens.vocabulary import predictions

        conversation = _conversation(options.prompt, options.system) if options.chat else None
        best = predictions(trace, graph.target, _N_PREDICTIONS)
        print(
            files.to_json(graph, llm.info.name, trace.prompt, conversation=conversation, predictions=best, info=llm.info),
            end="",
        )
    elif options.node_link:
        print(files.to_node_link(graph, llm.info.name), end="")
    elif options.csv:
        print(files.edges_csv(graph), end="")
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
        if graph.targets:
            from llm_tt.flow.graph import named_targets

            print(f"What follows {named_targets(graph)} is explained at once; the flow is the mean over them. Of these the last:")
        print(f"After {graph.token_texts[graph.target]!r} (token {graph.target}), {llm.info.name} predicts:")
        for text, probability in zip(best.texts, best.probabilities, strict=True):
            print(f"  {probability:6.3f}  {text!r}")
        print()
        print(_sources(graph))
        print()
        print(_as_text(graph))
    return 0


def _targets(options: argparse.Namespace, trace: Trace) -> range:
    """The positions whose predictions are explained: of an answer those before each of its tokens."""
    from llm_tt.flow.routes import span

    if options.answer:
        return span(trace, -trace.prompt.n_generated - 1, -2)
    target = -1 if options.target is None else options.target
    return span(trace, target if options.span is None else options.span, target)


def _sources(graph: FlowGraph) -> str:
    """In which tokens most of the flow ends, and how much was dropped."""
    from llm_tt.flow.propagation import flow_over_sources

    sources = flow_over_sources(graph)
    order = (-sources).argsort(kind="stable")[:_N_SOURCES]
    lines = ["Of the flow of these routes there ends in"]
    lines += [f"  {sources[token]:6.3f}  {graph.token_texts[token]!r} (token {token})" for token in order if sources[token] > 0]
    if len(lines) == 1:
        lines = ["No flow reaches a token."]
    if graph.carried is not None:
        lines.append(f"{max(0.0, 1 - graph.carried):.1%} of the flow was dropped with the edges that were not kept.")
    return "\n".join(lines)


def _as_text(graph: FlowGraph) -> str:
    """The routes as lines of text, from the last layer down."""
    kept = f"edges above {graph.threshold}" if graph.mass is None else f"edges that carry {graph.mass:.4g} of the flow"
    lines = [f"{graph.n_edges} {kept}" + (", renormalised" if graph.renormalized else "")]
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


_N_STRONGEST = 8
_N_CHOICES = 4


def _effects(options: argparse.Namespace) -> int:
    trace = _trace(options)
    from llm_tt.lens.effects import direct_effects

    effects = direct_effects(trace, options.target, options.token, options.contrast)
    if options.json:
        _print_json(effects.to_dict())
        return 0
    asked = repr(effects.token_text)
    if effects.contrast_text is not None:
        asked += f" and not {effects.contrast_text!r}"
    what = "logit" if effects.contrast_id is None else "difference of logits"
    capped = "" if effects.capped_logit is None else f" (after the soft cap {effects.capped_logit:.3f})"
    print(f"Why {asked} after {trace.token_texts[effects.target]!r} (token {effects.target}) in {trace.model.info.name}:")
    print(f"{what} {effects.logit:.3f}{capped}, sum of all parts {effects.total:.3f}")
    for note in effects.notes:
        print(note)
    for title, parts in zip(("raise it", "lower it"), effects.strongest(_N_STRONGEST), strict=True):
        print(f"\nParts that {title} most:" if parts else f"\nNo part would {title}.")
        for part in parts:
            print(f"  {part.effect:+8.3f}  {part.name}")
    return 0


def _compare(options: argparse.Namespace) -> int:
    if options.other_model is None and options.other_adapter is None and options.other_prompt is None:
        raise RequestError("There is nothing to compare with. Name a second model (--with), an adapter (--with-adapter) or a second text.")
    llm, prompt = _read_prompt(options)
    first = llm.trace(prompt)
    from llm_tt.analysis.comparing import compare

    second = copy.copy(options)
    second.model, second.adapter = options.other_model or options.model, options.other_adapter or options.adapter
    if options.other_model is not None:
        second.adapter = options.other_adapter
    second.prompt = options.prompt if options.other_prompt is None else options.other_prompt
    other, other_prompt = _read_prompt(second)
    compared = compare(
        first,
        other.trace(other_prompt),
        options.target,
        token=options.token,
        contrast=options.contrast,
        threshold=options.threshold,
        mass=options.mass,
    )
    answers: list[Continuation] = []
    if options.generate is not None:
        from llm_tt.models.generation import generate

        for model, text in ((llm, prompt), (other, other_prompt)):
            answers.append(Continuation.of(model.prompt(text).n_tokens, list(generate(model, text, options.generate))))
    if options.json:
        answered = [
            {"text": answer.text, "tokens": answer.token_texts, "ids": answer.token_ids, "probabilities": answer.probabilities}
            | {"differs": marks, "stop": answer.stop}
            for answer, marks in zip(answers, _differing(answers), strict=True)
        ]
        _print_json(compared.to_dict() | ({"generated": answered} if answers else {}))
        return 0
    _print_comparison(compared, options.top)
    if answers:
        _print_answers(compared, answers)
    return 0


def _differing(answers: Sequence[Continuation]) -> Sequence[Sequence[bool]]:
    """Of each token of two answers, whether the other lacks it."""
    from llm_tt.analysis.alignment import differing

    return differing(answers[0].token_texts, answers[1].token_texts) if answers else ()


def _print_answers(compared: Comparison, answers: Sequence[Continuation]) -> None:
    print("\nWhat they generate, tokens that the other does not in brackets:")
    for name, answer, marks in zip(compared.names, answers, _differing(answers), strict=True):
        shown = "".join(f"[{text}]" if is_own else text for text, is_own in zip(answer.token_texts, marks, strict=True))
        print(f"  {name}: {shown!r}")


def _print_comparison(compared: Comparison, n_edges: int) -> None:
    effects, edges = compared.effects, compared.edges
    print(f"From {compared.names[0]} to {compared.names[1]}:")
    print(f"logit of {effects[0].of!r}: {effects[0].logit:.3f} -> {effects[1].logit:.3f}")
    n_tokens = [len(texts) for texts in compared.token_texts]
    if compared.n_unpaired != (0, 0):
        print(
            f"{len(compared.pairs)} of {n_tokens[0]} and {n_tokens[1]} tokens are paired by {compared.aligned_by}; the others have no change."
        )
    for note in compared.notes:
        print(note)
    texts = [compared.token_texts[side][target] for side, target in enumerate(compared.targets)]
    print(f"\nAfter {texts[0]!r}" + ("" if texts[0] == texts[1] else f" and {texts[1]!r}") + " come:")
    for text, shares in list(zip(compared.choices.texts, compared.choices.probabilities.tolist(), strict=True))[:_N_CHOICES]:
        shown = ["none" if math.isnan(share) else f"{share:.3f}" for share in shares]
        print(f"  {shown[0]:>6} -> {shown[1]:>6}  {text!r}")
    print("\n          token  KL (nats)  p(next): first  second")
    for (position, _), divergence, following in zip(compared.pairs.tolist(), compared.divergence, compared.following, strict=True):
        shown = ["" if math.isnan(value) else f"{value:.3f}" for value in following.tolist()]
        apart = "" if math.isnan(divergence) else f"{divergence:.4f}"
        print(f"{compared.token_texts[0][position]!r:>15}  {apart:>9}  {shown[0]:>14}  {shown[1]:>6}".rstrip())
    if not compared.has_like_parts:
        return
    print(f"\nEdges that changed most, of {len(edges)}:")
    for edge in edges.strongest(n_edges):
        side = edges.side(edge)
        source, destination, key = edges.name(edge, side)
        before, after = edges.contribution[edge].tolist()
        line = f"  {after - before:+.3f}  {source} -> {destination} ({key}): {before:.3f} -> {after:.3f}"
        heads = edges.heads_by_change(edge)
        if heads and not math.isnan(after - before):
            line += f", most by H{heads[0][0]}; from {compared.token_texts[side][edges.source[edge, side]]!r}"
        print(line)
    change = compared.head_effects()[1] - compared.head_effects()[0]
    print("\nHeads whose direct effect changed most:")
    order = np.dstack(np.unravel_index(np.argsort(-np.abs(change), axis=None), change.shape))[0]
    for layer, head in order[:_N_STRONGEST].tolist():
        print(f"  {change[layer, head]:+.3f}  L{layer} H{head}")
    change = compared.ffn_effects()[1] - compared.ffn_effects()[0]
    print("\nFFN blocks whose direct effect changed most:")
    for layer in np.argsort(-np.abs(change)).tolist()[:_N_STRONGEST]:
        print(f"  {change[layer]:+.3f}  FFN L{layer}")


def _heads(options: argparse.Namespace) -> int:
    trace = _trace(options)
    from llm_tt.flow.heads import head_shares

    target = trace.position(options.target)
    layers = range(trace.n_layers) if options.layer is None else [trace.layer(options.layer)]
    shares = sorted((share for layer in layers for share in head_shares(trace, layer, target)), key=lambda share: -share.contribution)
    texts = trace.token_texts
    if options.json:
        heads = [{**asdict(share), "source_token": texts[share.source]} for share in shares]
        _print_json({"model": trace.model.info.name, "target": target, "tokens": texts, "heads": heads})
        return 0
    print(f"Contribution of each head to the residual stream after attention at {texts[target]!r} (token {target}):")
    print("layer  head  contribution  mostly from")
    for share in shares:
        origin = f"{share.from_source:.4f} from {texts[share.source]!r} (token {share.source})" if share.from_source else ""
        print(f"{share.layer:>5}  {share.head:>4}  {share.contribution:>12.4f}  {origin}".rstrip())
    return 0


def _neurons(options: argparse.Namespace) -> int:
    trace = _trace(options)
    from llm_tt.flow.contributions import neuron_share, neuron_shares
    from llm_tt.lens.effects import direct_effects, neuron_effects, strongest

    layer, position = trace.layer(options.layer), trace.position(options.position)
    question = direct_effects(trace, position, options.token, options.contrast)
    effects = neuron_effects(trace, layer, position, question.token_id, question.contrast_id)
    if options.by == "effect":
        shares = [neuron_share(trace, layer, position, neuron) for neuron in strongest(effects, options.top)]
    else:
        shares = neuron_shares(trace, layer, position, options.top)
    texts = trace.token_texts
    if options.json:
        content = {
            "model": trace.model.info.name,
            "layer": layer,
            "position": position,
            "tokens": texts,
            "effect_of": question.question_to_dict(),
        }
        _print_json({**content, "neurons": [{**asdict(share), "effect": float(effects[share.neuron])} for share in shares]})
        return 0
    asked = repr(question.token_text) + ("" if question.contrast_text is None else f" and not {question.contrast_text!r}")
    print(f"Contribution of neurons to the residual stream after the FFN of layer {layer} at {texts[position]!r} (token {position}),")
    print(f"and their direct effects on the logit of {asked} (all neurons of the layer together {effects.sum():+.3f}):")
    for note in question.notes:
        print(note)
    print("contribution  activation    effect  name")
    for share in shares:
        print(f"{share.contribution:>12.4f}  {share.activation:>10.4f}  {effects[share.neuron]:>+8.3f}  {share.name}")
    return 0


def _saliency(options: argparse.Namespace) -> int:
    trace = _trace(options)
    from llm_tt.analysis.saliency import saliency

    found = saliency(
        trace,
        options.target,
        options.token,
        options.contrast,
        options.methods,
        options.unit,
        n_samples=options.samples,
        n_steps=options.steps,
        n_removed=options.removed,
        seed=options.seed,
        threshold=options.threshold,
    )
    if options.json:
        _print_json({"model": trace.model.info.name, **found.to_dict()})
    elif options.csv:
        print(found.to_csv(), end="")
    else:
        print(_saliency_text(found, trace.model.info.name))
    return 0


def _saliency_text(found: Saliency, model: str) -> str:
    asked = repr(found.token_text) + ("" if found.contrast_text is None else f" and not {found.contrast_text!r}")
    lines = [
        f"Why {asked} after {found.token_texts[found.target]!r} (token {found.target}) in {model}: probability {found.probability:.3f}, "
        f"{'log probability' if found.contrast_id is None else 'lead in log probability'} {found.lead:.3f}",
        *found.notes,
        "",
    ]
    texts = [repr(feature.text) + ("" if not feature.is_kept else " (stays)") for feature in found.features]
    columns = [("token", [f"{feature.start} {text}" for feature, text in zip(found.features, texts, strict=True)])]
    for method in found.methods:
        columns.append((method.method, ["" if score != score else f"{score:.3f}" for score in method.scores.tolist()]))
    lines += _columns(columns)
    lines += ["", f"Mean fall of the probability with the first 1 to {found.n_removed} {found.unit}s taken out:"]
    lines += [f"  {method.drop:+.3f}  {method.name} ({method.n_runs} run{'s' * (method.n_runs > 1)})" for method in found.methods]
    lines.append(f"  {found.random_drop:+.3f}  random order, the mean of {found.n_random}")
    if len(found.methods) > 1:
        lines += ["", "Rank correlation (Spearman):"]
        names = [method.method for method in found.methods]
        rows = [["" if value != value else f"{value:+.2f}" for value in row] for row in found.correlations.T.tolist()]
        lines += _columns([("", list(names)), *zip(names, rows, strict=True)])
    lines += [""] * any(method.note for method in found.methods)
    lines += [f"{method.name}: {method.note}" for method in found.methods if method.note]
    lines += [sentence for _, sentence in found.unavailable]
    return "\n".join(lines)


def _columns(columns: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
    """A table as lines: the first column to the left, the others to the right."""
    widths = [max(map(len, [head, *cells])) for head, cells in columns]
    rows = zip(*([head, *cells] for head, cells in columns), strict=True)
    return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]


def _print_json(content: object) -> None:
    print(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False))


def _lens(options: argparse.Namespace) -> int:
    trace = _trace(options)
    llm = trace.model
    from llm_tt.lens.grid import token_trajectories
    from llm_tt.lens.vocabulary import predictions

    best = predictions(trace, options.position, 5).token_ids.tolist()
    lines = token_trajectories(trace, options.position, [*best, *options.token], normalize=not options.no_normalize)
    if options.json:
        _print_json({"model": llm.info.name, "token": trace.token_texts[lines.position], **lines.to_dict()})
        return 0
    print(f"After {trace.token_texts[lines.position]!r} (token {lines.position}), probability (rank) at each point of {llm.info.name}:")
    print()
    print(_as_table(lines))
    for note in lines.notes:
        print(note)
    return 0


def _as_table(lines: Trajectories) -> str:
    """One row a point, the last layer on top as in the graph; one column a token."""
    table = [["", *map(repr, lines.texts)]]
    for row in reversed(range(len(lines.points))):
        numbers = zip(lines.probabilities[row].tolist(), lines.ranks[row].tolist(), strict=True)
        table.append([lines.nodes[row], *(f"{probability:.3f} ({rank})" for probability, rank in numbers)])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in table)


def _evaluate(options: argparse.Namespace) -> int:
    from llm_tt.analysis.errors import explain_errors, largest_cell
    from llm_tt.analysis.evaluation import compare_evaluations, evaluate
    from llm_tt.analysis.rows import Template, read_data
    from llm_tt.analysis.strategies import evaluate_strategies, name_of
    from llm_tt.analysis.strategy_report import compare_reports

    scoring = _scoring(options)
    template = Template(options.template, options.chat, options.system)
    if options.explain and options.score != "labels":
        raise RequestError("Errors are explained of an evaluation by labels. Leave out --score, or --explain.")
    if options.explain and options.strategies:
        raise RequestError("Errors are explained of one way to ask. Leave out --strategies, or --explain.")
    data = read_data(options.data, options.limit)
    strategies = _strategies(options, data, template, scoring)
    _folder_for(options.out)
    configured = load_config(options.config).models if options.config else {}
    reports: list[EvaluationReport] = []
    names: list[str] = []
    why: list[Table] = []
    given = {"slices": options.slice, "words": options.word, "folder": options.out, "seed": options.seed, "progress": _on_one_line}
    from llm_tt.models import load_model

    # An adapter on the command line is MODEL's.
    for model, adapter in [(options.model, options.adapter), *([] if options.compare is None else [(options.compare, None)])]:
        llm = load_model(configured.get(model) or model, adapter=adapter, device=options.device, dtype=options.dtype)
        if strategies:
            reports += evaluate_strategies(llm, data, strategies, **given)
            names += [name_of(llm.info.name, one, options.compare is not None, len(strategies) > 1) for one in strategies]
        else:
            reports.append(evaluate(llm, data, template, scoring, **given))
            names.append(llm.info.name)
        cell = largest_cell(reports[-1]) if options.explain else None
        if cell is not None:
            explanation = explain_errors(llm, data, template, reports[-1], *cell, progress=_on_one_line)
            why += [replace(table, title=f"{llm.info.name}: {table.title}") for table in explanation.tables()]
        # Before the next model is loaded.
        del llm
    names = _told_apart(names)
    found: EvaluationReport | EvaluationComparison | StrategyComparison
    if len(reports) == 1:
        found = reports[0]
    elif strategies:
        found = compare_reports(reports, names, options.seed)
    else:
        found = compare_evaluations(reports[0], reports[1])
    if options.out is not None:
        _write_evaluation(options.out, reports, names, found, why, bool(strategies))
    if options.json:
        tables = {"explained": [asdict(table) for table in why]} if options.explain else {}
        _print_json(found.to_dict() | tables)
    else:
        print(found.to_text(why))
    return 0


def _scoring(options: argparse.Namespace) -> Scoring:
    from llm_tt.analysis.scoring import Scoring, parse_labels

    # A JSON field may be that of the structured strategy alone.
    generated = options.score == "generate" or "structured" not in _strategy_names(options)
    return Scoring(
        options.score,
        () if options.labels is None else parse_labels(options.labels),
        options.label_column,
        ("{}", " {}") if options.spelling is None else tuple(options.spelling),
        calibrated=options.calibrate,
        n_tokens=options.tokens or 16,
        pattern=options.pattern,
        json_field=options.json_field if generated else None,
        schema=_schema(options) if generated else None,
    )


def _schema(options: argparse.Namespace) -> str | None:
    if options.schema is None:
        return None
    try:
        return options.schema.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise RequestError(f'The JSON schema "{options.schema}" cannot be read: {reason}. Check the path.') from error


def _strategy_names(options: argparse.Namespace) -> list[str]:
    return [name.strip() for part in options.strategies or () for name in part.split(",")]


def _strategies(options: argparse.Namespace, data: DataSet, template: Template, scoring: Scoring) -> tuple[Strategy, ...]:
    """The ways to ask that the options name; none where they name none."""
    from llm_tt.analysis.rows import read_data
    from llm_tt.analysis.scoring import Reasoning
    from llm_tt.analysis.strategies import INSTRUCTION, examples_per_label, rows_numbered, strategies_named

    names = _strategy_names(options)
    for name, concerned in (
        ("few-shot", ("shots", "shot_rows", "train")),
        ("step-by-step", ("reason_tokens", "reason_ask", "reason_instruction", "reason_parse")),
    ):
        for option in concerned:
            if getattr(options, option) and name not in names:
                raise RequestError(f"--{option.replace('_', '-')} is for the strategy {name}. Add --strategies {name}, or leave it out.")
    if not names:
        return ()
    examples: tuple[Row, ...] = ()
    if "few-shot" in names:
        if (options.shots is None) == (options.shot_rows is None):
            raise RequestError(
                "Few-shot needs examples: so many of each label (--shots 2), or the rows with these numbers (--shot-rows 3,17)."
            )
        source = data if options.train is None else read_data(options.train)
        if options.shots is not None:
            others = None if options.train is None else data
            examples = examples_per_label(source, template, scoring, options.shots, seed=options.seed, apart_from=others)
        else:
            examples = rows_numbered(source, _row_numbers(options.shot_rows))
    plain = Reasoning()
    return strategies_named(
        names,
        template,
        scoring,
        examples=examples,
        reasoning=Reasoning(options.reason_tokens or plain.n_tokens, plain.ask if options.reason_ask is None else options.reason_ask),
        instruction=INSTRUCTION if options.reason_instruction is None else options.reason_instruction,
        parse=options.reason_parse,
        field=options.json_field or "label",
        schema=_schema(options),
        n_tokens=options.tokens or 48,
    )


def _row_numbers(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    for part in parts:
        if not part.isascii() or not part.isdigit():
            raise RequestError(f'"{part}" in --shot-rows is no number of a row. Write numbers as 3,17.')
    return [int(part) for part in parts]


def _told_apart(names: Sequence[str]) -> list[str]:
    """A model beside itself with an adapter has its name twice."""
    return [f"{name} ({names[: place + 1].count(name)})" if names.count(name) > 1 else name for place, name in enumerate(names)]


def _write_evaluation(
    folder: Path,
    reports: Sequence[EvaluationReport],
    names: Sequence[str],
    found: EvaluationReport | EvaluationComparison | StrategyComparison,
    why: Sequence[Table],
    has_strategies: bool,
) -> None:
    """CSV of every report, and one page of all."""
    called = [
        _file_name(f"{report.model}-{name}" if has_strategies and not name.startswith(report.model) else name)
        for report, name in zip(reports, names, strict=True)
    ]
    for name, report in zip(called, reports, strict=True):
        # A byte order mark, without which spreadsheets take the file for another encoding.
        (folder / f"{name}.csv").write_text(report.to_csv(), encoding="utf-8-sig", newline="")
        if report.no_curves is None:
            (folder / f"{name}-curves.csv").write_text(report.curves_csv(), encoding="utf-8-sig", newline="")
    if has_strategies and len(reports) > 1:
        page = folder / "strategies.html"
        (folder / "strategies.csv").write_text(found.to_csv(), encoding="utf-8-sig", newline="")  # type: ignore[union-attr]
    else:
        page = folder / f"{'-against-'.join(called)}.html"
    page.write_text(found.to_html(why), encoding="utf-8")
    print(f"llm-tt: wrote {page}", file=sys.stderr)


def _folder_for(folder: Path | None) -> None:
    if folder is not None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RequestError(f'The folder "{folder}" cannot be made: {error.strerror}. Name another one.') from error


def _file_name(name: str) -> str:
    """What a model is called, as a part of a file's name."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.")[-80:] or "model"


def _on_one_line(stage: str, fraction: float) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{fraction:4.0%}  {stage}", end="\n" if fraction == 1 else "", file=sys.stderr, flush=True)


def _check(options: argparse.Namespace) -> int:
    from llm_tt.check import check

    report = check(_model(options), adapter=options.adapter, base=options.base, device=options.device, dtype=options.dtype)
    if options.json:
        _print_json(report.to_dict())
    elif report.is_empty:
        print(f"llm-tt: {report.failure}", file=sys.stderr)
    else:
        print(report.to_text())
    return 0 if report.ok else 1
