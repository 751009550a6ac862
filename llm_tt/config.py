"""The configuration file: JSON with `//` comments -> `AppConfig` and `ModelSpec`. Says what is configured, loads nothing.

LM-TT's files are valid: `models` maps a name to null or to a folder. Relative paths are relative to the configuration file; a prompt file that
is not there is looked for in the working directory, as LM-TT does.
"""

from __future__ import annotations

import difflib
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo

from llm_tt.demo import ADAPTER_DIR, MODEL_DIR
from llm_tt.errors import ConfigError, ModelError

DEMO = "demo"
DEMO_TUNED = "demo-tuned"
"""Its fine-tuned sibling, an adapter"""
_STRING_OR_COMMENT = re.compile(r'"(?:\\.|[^"\\\n])*"|//[^\n]*')
BALANCED = "balanced"
"""The device that spreads a model's layers over all CUDA devices"""
OFFLOAD = "offload"
"""The device that fills the CUDA devices and keeps the layers that they have no room for in main memory"""
_DEVICE = re.compile(rf"auto|cpu|mps|cuda(:\d+)?|{BALANCED}|{OFFLOAD}")
_BACKEND = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")

_PATHS = ("path", "adapter", "base", "chat_template")

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Quantization = Literal["8bit", "4bit"]


def _known_device(value: Any) -> Any:
    if isinstance(value, str) and not _DEVICE.fullmatch(value):
        raise ValueError('expected "auto", "cpu", "mps", "cuda", "cuda:0", "balanced" or "offload"')
    return value


def _a_class(value: Any) -> Any:
    if isinstance(value, str) and not _BACKEND.fullmatch(value):
        raise ValueError('expected a class, written "package.module:Class"')
    return value


def _beside_a_backend(value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
    if value and info.data.get("backend") is None:
        raise ValueError('expected "backend" beside it, whose settings these are')
    return value


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ModelSpec(_Strict):
    """One model of the configuration: what to load and how."""

    name: str = Field(description="what the user calls it")
    path: str | None = Field(default=None, description="folder or hub name; the model's name if not given")
    adapter: str | None = Field(default=None, description="folder or hub name of a PEFT adapter to merge")
    base: str | None = Field(default=None, description="the adapter's base model, if not the one the adapter names")
    dtype: Dtype = "auto"
    device: Annotated[str, BeforeValidator(_known_device)] = "auto"
    chat_template: str | None = Field(default=None, description="file with a chat template, instead of the checkpoint's")
    revision: str | None = Field(default=None, description="branch, tag or commit on the hub")
    adapter_revision: str | None = Field(default=None, description="the same for the adapter")
    quantization: Quantization | None = Field(default=None, description="bits a weight, by bitsandbytes")
    trust_remote_code: bool = Field(default=False, description="run code that the checkpoint brings")
    allow_pickle: bool = Field(default=False, description="open weights that are not safetensors")
    backend: Annotated[str | None, BeforeValidator(_a_class)] = Field(default=None, description="a TransparentLlm of one's own")
    options: Annotated[dict[str, Any], AfterValidator(_beside_a_backend)] = Field(default={}, description="settings of that backend")

    @classmethod
    def named(cls, name: str) -> ModelSpec:
        """The specification of a bare name: the demo model or its sibling, a folder or a hub name."""
        if name == DEMO:
            return cls(name=DEMO, path=str(MODEL_DIR))
        if name == DEMO_TUNED:
            return cls(name=DEMO_TUNED, path=str(MODEL_DIR), adapter=str(ADAPTER_DIR))
        return cls(name=name, path=str(Path(name).expanduser()) if name.startswith("~") else None)

    def changed(self, **changes: str | None) -> ModelSpec:
        """The same with some values replaced; None leaves one as it is.

        Raises:
            ModelError: a value is not valid.
        """
        values = self.model_dump() | {key: value for key, value in changes.items() if value is not None}
        try:
            return ModelSpec.model_validate(values)
        except ValidationError as error:
            raise ModelError(f"{self.name}: {_sentence(error, values)}") from error

    def __hash__(self) -> int:
        # Options may hold lists and objects, which have no hash of their own.
        return hash(self.model_dump_json())

    def as_config_entry(self) -> str | dict[str, Any] | None:
        """The shortest value of `models` that means this model under its name: null, a folder or hub name, or an object."""
        if self == ModelSpec.named(self.name):
            return None
        entry = {name: value for name, value in self if name != "name" and value != ModelSpec.model_fields[name].default}
        if entry.get("path") == str(MODEL_DIR):
            entry["path"] = DEMO
        if entry.get("path") == self.name:
            del entry["path"]
        if not entry:
            return None
        return entry["path"] if entry.keys() == {"path"} else entry


class AppConfig(_Strict):
    """Everything a configuration file can say."""

    models: dict[str, ModelSpec] = Field(default_factory=lambda: {DEMO: ModelSpec.named(DEMO)})
    default_model: str = Field(default="", description="chosen when the page opens; empty for none")
    preloaded_dataset_filename: str | None = Field(default=None, description="text file with one prompt a line")
    allow_loading_dataset_files: bool = Field(default=True, description="users may open prompt files and data sets of their own")
    data_sets: dict[str, str] = Field(default={}, description="data sets to evaluate on: name -> file or folder")
    results_folder: str | None = Field(default=None, description="where evaluations keep their results")
    max_user_string_length: int | None = Field(default=None, gt=0, description="longest prompt a user may type, in characters")
    allow_adding_models: bool = Field(default=True, description="users may name models that are not configured; never in demo mode")
    demo_mode: bool = Field(default=False, description="only the configured models and prompts")
    debug: bool = Field(default=False, description="show timing and memory")

    def prompts(self) -> list[str]:
        """The lines of the prompt file; none if no file is configured.

        Raises:
            ConfigError: the file is missing or not UTF-8 text.
        """
        return [] if self.preloaded_dataset_filename is None else read_prompts(Path(self.preloaded_dataset_filename))

    @property
    def models_may_be_added(self) -> bool:
        return self.allow_adding_models and not self.demo_mode

    @property
    def data_may_be_named(self) -> bool:
        """Whether users may name files of this machine: those who may name models may read data sets too."""
        return self.allow_loading_dataset_files and self.models_may_be_added

    @property
    def data_may_be_uploaded(self) -> bool:
        return self.allow_loading_dataset_files and not self.demo_mode

    def lines_with(self, spec: ModelSpec) -> str:
        """What to write into the configuration file, so that it has this model too: the first line of `models`, or all of `models` where
        the file does not have it."""
        line = f"{_json(spec.name)}: {_json(spec.as_config_entry())}"
        if "models" in self.model_fields_set:
            return line + ("," if self.models else "")
        kept = [f"    {_json(model.name)}: {_json(model.as_config_entry())}" for model in self.models.values()]
        return '"models": {\n' + ",\n".join([f"    {line}", *kept]) + "\n}" + ("," if self.model_fields_set else "")


def read_prompts(file: Path) -> list[str]:
    """One prompt a line, empty lines left out.

    Raises:
        ConfigError: the file is missing or not UTF-8 text.
    """
    return parse_prompts(_read(file, "Prompt file"), str(file))


def parse_prompts(data: bytes, name: str) -> list[str]:
    """The prompts in the bytes of a file called `name`; raises as `read_prompts`."""
    # Not splitlines(), which also cuts at characters that a prompt may hold.
    return [line for line in re.split(r"\r\n|\r|\n", _decode(data, f'Prompt file "{name}"')) if line.strip()]


def load_config(file: str | Path) -> AppConfig:
    """Read and check a configuration file.

    Raises:
        ConfigError: one sentence with the key's path, the offending value and the nearest valid name.
    """
    file = Path(file)
    text = _decode(_read(file, "Configuration file"), f'Configuration file "{file}"')
    # Comments become spaces, so that positions in error messages stay right.
    text = _STRING_OR_COMMENT.sub(lambda match: match[0] if match[0].startswith('"') else " " * len(match[0]), text)
    try:
        content = json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        raise ConfigError(
            f'Configuration file "{file}" is not valid JSON: line {error.lineno}, column {error.colno}: {error.msg}.'
        ) from error
    except _RefusedError as error:
        raise ConfigError(f'Configuration file "{file}": {error}') from error
    if not isinstance(content, dict):
        raise ConfigError(f'Configuration file "{file}" holds a {_json_type(content)}. Expected an object: {{"models": ...}}.')
    try:
        config = AppConfig.model_validate(_with_specs(content, file.parent))
    except ValidationError as error:
        raise ConfigError(f'Configuration file "{file}": {_sentence(error, content)}') from error
    except _RefusedError as error:
        raise ConfigError(f'Configuration file "{file}": {error}') from error
    if config.default_model and config.default_model not in config.models:
        raise ConfigError(
            f'Configuration file "{file}": default_model is "{config.default_model}", which is not among its models.'
            + _nearest(config.default_model, list(config.models))
        )
    if config.preloaded_dataset_filename is not None:
        resolved = _resolve(config.preloaded_dataset_filename, file.parent)
        config = config.model_copy(update={"preloaded_dataset_filename": resolved})
    files: dict[str, Any] = {"data_sets": {name: _absolute(path, file.parent) for name, path in config.data_sets.items()}}
    if config.results_folder is not None:
        files["results_folder"] = _absolute(config.results_folder, file.parent)
    return config.model_copy(update={name: value for name, value in files.items() if name in config.model_fields_set})


class _RefusedError(Exception):
    """A sentence about the content of the file, without the file's name."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise _RefusedError(f'the key "{key}" is there twice. Remove one of them.')
        result[key] = value
    return result


def _read(file: Path, what: str) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError as error:
        raise ConfigError(f'{what} "{file}" does not exist.') from error
    except OSError as error:
        raise ConfigError(f'{what} "{file}" cannot be read: {error.strerror}.') from error


def _decode(data: bytes, what: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{what} is not UTF-8 text (byte {error.start} is 0x{data[error.start]:02x}). Save it as UTF-8.") from error


def _with_specs(content: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Give every entry of `models` the shape of a `ModelSpec`, with its name and with paths made absolute."""
    models = content.get("models")
    if not isinstance(models, dict):
        return content
    return {**content, "models": {name: _spec(name, value, folder) for name, value in models.items() if name != ""}}


def _spec(name: str, value: Any, folder: Path) -> Any:
    if value is None:
        named = ModelSpec.named(name)
        return named.model_copy(update={"path": _resolve(name, folder)}) if named.path is None and (folder / name).is_dir() else named
    if isinstance(value, str):
        value = {"path": value}
    if not isinstance(value, dict):
        return value
    if "name" in value:
        raise _RefusedError(_unknown_key(["models", name, "name"]))
    value = {key: entry for key, entry in value.items() if not (key in _PATHS and entry == "")}
    paths = {key: _resolve(value[key], folder) for key in _PATHS if isinstance(value.get(key), str)}
    bare = {"path": str(MODEL_DIR)} if name == DEMO and "path" not in value else {}
    return {**bare, **value, **paths, "name": name}


def _resolve(path: str, folder: Path) -> str:
    """An absolute path for what is a path; anything else (a hub name) unchanged."""
    if path == DEMO:
        return str(MODEL_DIR)
    if path == DEMO_TUNED:
        return str(ADAPTER_DIR)
    expanded = Path(path).expanduser()
    if expanded.is_absolute():
        return str(expanded)
    if path.startswith(("./", "../")) or (folder / expanded).exists():
        return str((folder / expanded).resolve())
    return path


def _absolute(path: str, folder: Path) -> str:
    return str((folder / Path(path).expanduser()).resolve())


def _sentence(error: ValidationError, content: dict[str, Any]) -> str:
    """The first problem, as: key path, offending value, what is expected, nearest valid name."""
    problem = error.errors()[0]
    path = [str(part) for part in problem["loc"]]
    key = ".".join(path)
    if problem["type"] == "extra_forbidden":
        return _unknown_key(path)
    value = json.dumps(_at(content, path), ensure_ascii=False, default=str)
    expected = {
        "bool_type": "true or false",
        "string_type": "a text",
        "int_type": "a whole number",
        "dict_type": "an object",
        "model_type": "null, a folder, or an object",
        "greater_than": "a number above 0",
    }.get(problem["type"])
    if expected is None:
        message = problem["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
        expected = message.removeprefix("expected ")
    close = difflib.get_close_matches(value.strip('"'), list(get_args(Dtype)), n=1, cutoff=0.5) if path[-1] == "dtype" else []
    return f"{key} is {value}. Expected {expected}." + (f' Did you mean "{close[0]}"?' if close else "")


def _unknown_key(path: list[str]) -> str:
    valid = [name for name in (ModelSpec if path[0] == "models" else AppConfig).model_fields if name != "name"]
    return f'unknown key "{".".join(path)}".' + _nearest(path[-1], valid)


def _at(content: Any, path: list[str]) -> Any:
    for part in path:
        content = content.get(part) if isinstance(content, dict) else content
    return content


def _nearest(name: str, valid: list[str]) -> str:
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    return f' Did you mean "{close[0]}"?' if close else f" Valid names: {', '.join(valid)}."


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _json_type(value: Any) -> str:
    return {list: "list", str: "text", int: "number", float: "number", bool: "truth value"}.get(type(value), "null")
