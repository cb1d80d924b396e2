"""For each tensor of a base, the aligned model's tensor to compare it with, whatever that is called.

An aligned model is saved by another release of transformers than its base was, and by a trainer: tied
weights may be left out, tensors that nothing reads are gone, experts are fused or apart. Two
checkpoints of the same names are compared name by name; of others, transformers' own rules
(`layout`) say what becomes the same weight of the model.
"""

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from mergekit_av.errors import AVError
from mergekit_av.io.checkpoint import Checkpoint, blocks_of
from mergekit_av.io.json import read_json
from mergekit_av.models.load import layout_of, load_shape

if TYPE_CHECKING:  # transformers' rules take seconds to import, and are seldom asked
    from mergekit_av.models.layout import Group

log = logging.getLogger(__name__)

# Settings that change what a model computes of its weights, whatever these are.
USES = (
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "layer_types",
    "sliding_window",
    "hidden_act",
    "hidden_activation",
    "activation_function",
    "rms_norm_eps",
    "layer_norm_eps",
    "layer_norm_epsilon",
    "norm_eps",
    "rope_parameters",
    "partial_rotary_factor",
    "num_experts_per_tok",
    "norm_topk_prob",
    "routed_scaling_factor",
    "query_pre_attn_scalar",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "attention_multiplier",
    "embedding_multiplier",
    "residual_multiplier",
    "logits_scaling",
    "logit_scale",
)


class Counterparts:
    """What of an aligned checkpoint belongs to each tensor of its base.

    Attributes:
        names: the tensors of the base that have a difference: floating-point ones, without those that
            nothing reads and the aligned model does not have.

    Raises:
        AVError: the aligned model is not of this base, or has other shapes.
    """

    def __init__(self, base: Checkpoint, aligned: Checkpoint):
        self._base, self._aligned = base, aligned
        # Name in the base → in the aligned checkpoint; or, of what must be converted, its group.
        self._partners: dict[str, str] = {}
        self._groups: dict[str, Group] = {}
        self._recent: dict[str, dict[str, torch.Tensor]] = {}
        if _alike(base, aligned):
            self._partners = {name: name for name in _floating(base)}
        else:
            self._old, self._new = layout_of(base), layout_of(aligned)
            self._match()
        self.names = [name for name in base if name in self._partners or name in self._groups]
        _warn_of_settings(base, aligned)

    def blocks(self, name: str) -> Iterator[torch.Tensor]:
        """Return the aligned model's values for a tensor of the base, in the pieces of
        `Checkpoint.blocks`."""
        if name in self._partners:
            return self._aligned.blocks(self._partners[name])
        return blocks_of(self._converted(self._groups[name])[name])

    def _match(self) -> None:
        _check_vocabulary(self._base, self._aligned)
        self._old.check_whole(str(self._base.folder))
        for name in self._base:
            if self._base[name].dtype.is_floating_point:
                self._find(name)
            else:
                self._check_integer(name)
        self._check_extra()

    def _find(self, name: str) -> None:
        base, aligned, place = self._base, self._aligned, self._old.place(name)
        shape = base[name].shape
        if (
            place is None
        ):  # nothing reads it: it stays as it is, unless the aligned model has it too
            if name in aligned and self._new.place(name) is None and aligned[name].shape == shape:
                self._partners[name] = name
            return
        # Of tied weights that are both there, the one of the same name.
        same = name in aligned and self._new.place(name) == place
        partner = name if same else self._new.by_place.get(place) if place else None
        if partner is not None:
            self._check_floating(partner)
            if aligned[partner].shape != shape:
                raise AVError(
                    f"{name} is {shape} in {base.folder} and {aligned[partner].shape} in "
                    f"{aligned.folder}: an aligned model keeps the shapes of its base"
                )
            self._partners[name] = partner
            return
        group = self._old.by_disk[name]
        if not self._old.owners(group) <= set(self._new.by_memory):
            raise AVError(f"{aligned.folder} has no tensor {name}: it is not of this base")
        for owner in self._old.owners(group):
            for source in self._new.by_memory[owner].disk:
                self._check_floating(source)
        self._groups[name] = group

    def _check_floating(self, name: str) -> None:
        """Raise AVError for an integer tensor of the aligned model where the base has a weight."""
        if not self._aligned[name].dtype.is_floating_point:
            raise AVError(_codes(self._aligned, name))

    def _converted(self, group: "Group") -> dict[str, torch.Tensor]:
        """Return all tensors of one of the base's groups, as the aligned model has them."""
        # Those of a group are asked for nearly in a row; of two groups at most at a time.
        if group.target not in self._recent:
            self._recent = dict([*self._recent.items()][-1:])
            self._recent[group.target] = self._convert(group)
        return self._recent[group.target]

    def _convert(self, group: "Group") -> dict[str, torch.Tensor]:
        owners = self._old.owners(group)
        sources = {self._new.by_memory[n].target: self._new.by_memory[n] for n in owners}
        values: dict[str, torch.Tensor] = {}
        for source in sources.values():
            read = {name: self._aligned.read(name) for name in source.disk}
            made = self._new.to_memory(source, read)
            values |= {self._new.ties.get(name, name): value for name, value in made.items()}
        found = {name: values[self._old.ties.get(name, name)] for name in group.memory}
        for name, shape in group.memory.items():
            if tuple(found[name].shape) != shape:
                raise AVError(
                    f"{name} is {shape} in {self._base.folder} and {tuple(found[name].shape)} in "
                    f"{self._aligned.folder}: an aligned model keeps the shapes of its base"
                )
        return self._old.to_disk(group, found)

    def _check_integer(self, name: str) -> None:
        """Raise AVError for an integer tensor that is a weight, or that has changed."""
        info, place = self._base[name], self._old.place(name)
        if place and self._old.owners(self._old.by_disk[name]) & self._old.parameters:
            raise AVError(_codes(self._base, name))
        partner = (
            name if name in self._aligned else self._new.by_place.get(place) if place else None
        )
        if partner and not torch.equal(self._base.read(name), self._aligned.read(partner)):
            raise AVError(
                f"{name} ({info.dtype}) differs: only floating-point tensors have a difference"
            )

    def _check_extra(self) -> None:
        """Raise AVError for a weight that the base does not have; say what nothing reads."""
        used = set(self._partners.values())
        converted = {name for group in self._groups.values() for name in self._old.owners(group)}
        left_out = []
        for name in sorted(set(self._aligned) - used):
            place = self._new.place(name)
            if not self._aligned[name].dtype.is_floating_point:
                continue
            if place is None:
                left_out.append(name)
                continue
            if self._new.owners(self._new.by_disk[name]) <= converted:
                continue
            twin = self._new.by_place[place]
            if twin == name or not torch.equal(self._aligned.read(name), self._aligned.read(twin)):
                raise AVError(
                    f"{self._base.folder} has no tensor {name}: the aligned model is not of this base"
                )
        if left_out:
            log.warning(
                "%s: %s%s is not read by the architecture, and has no part in the vector",
                self._aligned.folder,
                left_out[0],
                f" (and {len(left_out) - 1} more)" if len(left_out) > 1 else "",
            )


def _codes(checkpoint: Checkpoint, name: str) -> str:
    dtype = str(checkpoint[name].dtype).removeprefix("torch.")
    return (
        f"{checkpoint.folder}: {name} is {dtype}, codes and not weights: take the model in bfloat16 or "
        "float32, or save it dequantised"
    )


def _floating(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    return {n: info.shape for n, info in checkpoint.items() if info.dtype.is_floating_point}


def _alike(base: Checkpoint, aligned: Checkpoint) -> bool:
    """Return whether the two have the same tensors by the same names, and nothing but weights."""
    whole = len(_floating(base)) == len(base)
    return whole and _floating(base) == _floating(aligned)


def _warn_of_settings(base: Checkpoint, aligned: Checkpoint) -> None:
    """Say where the two use equal weights in different ways, of which a vector has nothing."""
    if _written_uses(base) == _written_uses(aligned):
        return  # most are; what the files leave out takes seconds to find
    old, new = _uses(base), _uses(aligned)
    differing = sorted(key for key in old.keys() & new.keys() if old[key] != new[key])
    if differing:
        log.warning(
            "%s has another %s in its config.json than %s: the vector has the weights alone, and even at "
            "λ = 1 a merge, which keeps the base's settings, is not the aligned model",
            aligned.folder,
            ", ".join(differing),
            base.folder,
        )


def _written_uses(checkpoint: Checkpoint) -> list[dict[str, Any]]:
    """Return the same as config.json has it, at its top and for the text; whatever that leaves out."""
    file = checkpoint.folder / "config.json"
    config = read_json(file) if file.is_file() else {}
    text = config.get("text_config")
    parts = [config, text if isinstance(text, dict) else {}]
    return [{key: part.get(key) for key in ("model_type", *USES)} for part in parts]


def _uses(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what a configuration says of how weights are used; nothing where transformers does not
    know it."""
    try:
        config = load_shape(checkpoint.folder).config
    except AVError:
        return {}
    settings = config.get_text_config().to_dict()
    return {key: settings[key] for key in USES if key in settings}


def _check_vocabulary(base: Checkpoint, aligned: Checkpoint) -> None:
    """Raise AVError, with the remedy, for an aligned model that was given more tokens."""
    sizes = []
    for checkpoint in (base, aligned):
        config = read_json(checkpoint.folder / "config.json")
        text = config.get("text_config")
        sizes.append((text if isinstance(text, dict) else config).get("vocab_size"))
    old, new = sizes
    if old != new and all(type(size) is int for size in sizes):
        raise AVError(
            f"{aligned.folder} has embeddings for {new} tokens and {base.folder} for {old}: tokens "
            f"were added. Give the base the same ones (`model.resize_token_embeddings({new})`, saved "
            "with the aligned model's tokenizer), and take that as the base, in training too"
        )
