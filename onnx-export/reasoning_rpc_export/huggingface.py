"""Reads a Hugging Face model folder: config.json, safetensors files, tokenizer, chat template."""

from __future__ import annotations

import json
import math
from pathlib import Path

import safetensors

from .checkpoint import Checkpoint, Tokens, check_config, check_tensors, check_tokens
from .errors import ExportError
from .families import Family, ModelConfig, find_family
from .rope import build_rope
from .settings import Settings, printable_name, read_json
from .tensors import StoredTensor

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
GENERATION_KEYS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "do_sample")
# Settings of config.json with the only values that the graph implements; None is an absent setting.
IMPLEMENTED = {
    "hidden_act": ("silu", None),
    "partial_rotary_factor": (1, None),
    "quantization_config": (None,),
}
# Tensors that files carry beside the weights: rotary tables of old checkpoints.
IGNORED_TENSORS = (".rotary_emb.inv_freq",)


def open_huggingface(folder: Path) -> Checkpoint:
    settings = read_json(member(folder, "config.json", required=True))
    family, biased = find_model(settings)
    config = read_config(settings, family, biased)
    check_config(config)
    ignored = IGNORED_TENSORS + (("lm_head.weight",) if config.tied_head else ())
    tensors = check_tensors(config, read_tensors(folder), ignored)

    tokenizer_path = member(folder, "tokenizer.json")
    tokenizer = read_json(tokenizer_path) if tokenizer_path else None
    tokenizer_config = optional_json(folder, "tokenizer_config.json")
    generation = optional_json(folder, "generation_config.json")
    tokens = read_tokens(settings, generation, tokenizer_config, tokenizer)
    check_tokens(tokens, config.vocab_size)
    return Checkpoint(
        kind="huggingface",
        name=printable_name(folder.resolve()),
        config=config,
        tensors=tensors,
        tokenizer=tokenizer_path.read_bytes() if tokenizer_path else None,
        chat_template=read_chat_template(folder, tokenizer_config),
        tokens=tokens,
        generation=read_generation(generation),
    )


def member(folder: Path, name: str, required: bool = False) -> Path | None:
    """A file of the folder. One whose resolved path lies outside (`../x`, an absolute path, a link) is refused."""
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ExportError(f"{path}: leads outside the model folder; copy the file into it")
    if path.is_file():
        return path
    if required or path.exists():
        raise ExportError(f"{path}: no such file")
    return None


def optional_json(folder: Path, name: str) -> Settings:
    path = member(folder, name)
    return read_json(path) if path else Settings(str(folder / name), {})


def find_model(settings: Settings) -> tuple[Family, frozenset[str]]:
    """The family, and which projections have a bias; settings that this package does not implement are refused."""
    family = find_family("model_type", settings.get("model_type"))
    classes = settings.get("architectures")
    if classes is not None and not (isinstance(classes, list) and family.model_class in classes):
        raise settings.error("architectures", f"a list with {family.model_class}", classes)
    for key, implemented in (IMPLEMENTED | family.implemented).items():
        if settings.get(key) not in implemented:
            raise ExportError(f"{settings.origin}: {key} = {json.dumps(settings.get(key))[:60]} is not supported")
    layer_types = settings.get("layer_types") or []
    if not isinstance(layer_types, list) or any(kind != "full_attention" for kind in layer_types):
        raise settings.error("layer_types", "full_attention for every layer", layer_types)
    biased = frozenset(
        name
        for names, rule in family.biases.items()
        if (rule if isinstance(rule, bool) else settings.boolean(rule, False))
        for name in names
    )
    return family, biased


def read_config(settings: Settings, family: Family, biased: frozenset[str]) -> ModelConfig:
    num_heads = settings.integer("num_attention_heads")
    hidden_size = settings.integer("hidden_size")
    head_dim = settings.integer("head_dim", default=max(1, hidden_size // num_heads))
    # transformers 5 writes `rope_parameters`, which holds rope_theta too; before, `rope_theta` and `rope_scaling`.
    scaling = settings.table("rope_parameters") or settings.table("rope_scaling")
    rope = Settings(settings.origin, {"rope_theta": settings.get("rope_theta")} | scaling)
    return ModelConfig(
        family=family,
        num_layers=settings.integer("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=settings.integer("num_key_value_heads", default=num_heads),
        head_dim=head_dim,
        hidden_size=hidden_size,
        intermediate_size=settings.integer("intermediate_size"),
        vocab_size=settings.integer("vocab_size"),
        max_positions=settings.integer("max_position_embeddings"),
        rms_norm_eps=settings.number("rms_norm_eps", default=1e-6),
        rope=build_rope(rope.number("rope_theta", default=10000.0), head_dim, scaling),
        tied_head=settings.boolean("tie_word_embeddings", False),
        biased=biased,
    )


def read_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of the folder's safetensors files, of the single file or of the shards that the index names."""
    index_path = member(folder, INDEX_FILE)
    if index_path is None:
        return read_safetensors(member(folder, SINGLE_FILE, required=True))
    index = read_json(index_path)
    weight_map = index.table("weight_map")
    if not weight_map:
        raise index.error("weight_map", "an object", index.get("weight_map"))
    shards: dict[str, dict[str, StoredTensor]] = {}
    tensors = {}
    for name, file in weight_map.items():
        if not isinstance(file, str):
            raise index.error(f"weight_map {name}", "a file name", file)
        if file not in shards:
            shards[file] = read_safetensors(member(folder, file, required=True))
        if name not in shards[file]:
            raise ExportError(f"{folder / file}: tensor {name} is missing, though {INDEX_FILE} places it there")
        tensors[name] = shards[file][name]
    return tensors


def read_safetensors(path: Path) -> dict[str, StoredTensor]:
    """The header of one file: 8 bytes of length, then JSON {name: {dtype, shape, data_offsets}}.

    The safetensors library opens the file first: it checks lengths, overlaps and holes against the file's size.
    """
    try:
        with safetensors.safe_open(path, framework="numpy"):
            pass
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
    except OSError as error:
        raise ExportError(f"{path}: {error.strerror or error}") from None
    except (safetensors.SafetensorError, ValueError, RecursionError) as error:
        raise ExportError(f"{path}: not a readable safetensors file: {error}") from None
    header.pop("__metadata__", None)
    return {
        name: StoredTensor(name, path, 8 + size + entry["data_offsets"][0], tuple(entry["shape"]), entry["dtype"])
        for name, entry in header.items()
    }


def read_generation(generation: Settings) -> dict:
    found = {}
    for key in GENERATION_KEYS:
        value = generation.get(key)
        if value is None:
            continue
        if key == "do_sample":
            found[key] = generation.boolean(key, False)
        elif not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
            raise generation.error(key, "a number", value)
        else:
            found[key] = value
    return found


def read_chat_template(folder: Path, tokenizer_config: Settings) -> str | None:
    """chat_template.jinja, or the template inside tokenizer_config.json (of several, the one named `default`)."""
    path = member(folder, "chat_template.jinja")
    if path:
        try:
            return path.read_bytes().decode("utf-8")
        except UnicodeDecodeError:
            raise ExportError(f"{path}: not UTF-8 text") from None
    template = tokenizer_config.get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    if template is None:
        return None
    if not isinstance(template, str):
        raise tokenizer_config.error("chat_template", "a string or a list with a template named default", template)
    return template.encode("utf-8", "replace").decode("utf-8")  # JSON may hold half of a surrogate pair


def read_tokens(
    settings: Settings, generation: Settings, tokenizer_config: Settings, tokenizer: Settings | None
) -> Tokens:
    stop = {*generation.tokens("eos_token_id"), *settings.tokens("eos_token_id")}
    bos = settings.token("bos_token_id")
    eos = min(settings.tokens("eos_token_id"), default=None)
    add_bos = False
    if tokenizer is not None:
        ids = token_ids(tokenizer)
        named = special_token(tokenizer_config, "eos_token", ids)
        stop |= {named} if named is not None else set()
        eos = eos if named is None else named
        named = special_token(tokenizer_config, "bos_token", ids)
        bos = bos if named is None else named
        add_bos = tokenizer_config.boolean("add_bos_token", default=begins_with_token(tokenizer, bos, ids))
    return Tokens(bos=bos, eos=eos, add_bos=add_bos and bos is not None, stop=tuple(sorted(stop)))


def token_ids(tokenizer: Settings) -> dict[str, int]:
    """Text -> id of every token in tokenizer.json; added tokens win over the model's vocabulary."""
    vocab = tokenizer.table("model").get("vocab")
    ids = dict(vocab) if isinstance(vocab, dict) else {}
    added = tokenizer.get("added_tokens") or []
    if not isinstance(added, list):
        raise tokenizer.error("added_tokens", "a list", added)
    for entry in added:
        if not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
            raise tokenizer.error("added_tokens", "a list of objects with content and id", entry)
        ids[entry["content"]] = entry.get("id")
    return ids


def special_token(tokenizer_config: Settings, key: str, ids: dict[str, int]) -> int | None:
    """The id of `eos_token` or `bos_token`, which is a text or an object with `content`."""
    value = tokenizer_config.get(key)
    text = value.get("content") if isinstance(value, dict) else value
    if text is None:
        return None
    if not isinstance(text, str):
        raise tokenizer_config.error(key, "a string or an object with content", value)
    if not isinstance(ids.get(text), int):
        raise ExportError(f"{tokenizer_config.origin}: {key} {text!r} is not in tokenizer.json")
    return ids[text]


def begins_with_token(tokenizer: Settings, token: int | None, ids: dict[str, int]) -> bool:
    """Whether the tokenizer's own post-processor puts `token` in front of a text, as Llama 3's does.

    Only consulted where tokenizer_config.json does not say: encoding with the engine leaves post-processors out.
    """
    processor = tokenizer.table("post_processor")
    steps = processor.get("processors") if processor.get("type") == "Sequence" else [processor]
    for step in steps if isinstance(steps, list) else []:
        if isinstance(step, dict) and step.get("type") == "TemplateProcessing":
            single = step.get("single")
            first = single[0] if isinstance(single, list) and single else {}
            special = first.get("SpecialToken") if isinstance(first, dict) else None
            text = special.get("id") if isinstance(special, dict) else None
            return token is not None and isinstance(text, str) and ids.get(text) == token
    return False
