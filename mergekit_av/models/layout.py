"""Tensor names on disk and in memory: how a checkpoint becomes a model, and a model a checkpoint.

transformers renames, stacks, splits and transposes tensors when it loads some architectures (mixtures
of experts, GPT-NeoX, models that also see), and undoes it when it saves them. A checkpoint of the Hub
may hold other names again: those of an older release, or tensors that nothing reads. The rules are
transformers' own (`transformers.core_model_loading`); `conversion` applies them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from mergekit_av.errors import AVError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.core_model_loading import WeightConverter

    from .conversion import Rules

Shape = tuple[int, ...]
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Group:
    """Tensors of a checkpoint that become tensors of a model together; mostly one becomes one.

    Attributes:
        disk: names in the checkpoint, in the order in which transformers reads them.
        memory: name in the model → its shape there, as the checkpoint's tensors make it.
        converter: what transformers does to them; None where one tensor gets another name at most.
        patterns: which of the converter's inputs each tensor is.
        target: the name by which the converter knows what it makes.
    """

    disk: tuple[str, ...]
    memory: dict[str, Shape]
    target: str
    converter: "WeightConverter | None" = None
    patterns: tuple[str | None, ...] = ()


@dataclass(frozen=True)
class Place:
    """Where a tensor of a checkpoint goes, whatever it is called there: equal for the same weights."""

    target: str
    pattern: str | None = None
    number: int = 0


@dataclass
class Layout:
    """What becomes of each tensor of a checkpoint in a model.

    Attributes:
        groups: of the tensors that are read, each tensor in one.
        ignored: names of those that are not read.
        shapes: name in the model → shape: its parameters and the buffers that it saves, tied ones
            under their first name.
        parameters: the names among them that no model can do without.
        ties: other name of a tied tensor → its first name.
        places: tensor of the checkpoint that is read → where it goes.
    """

    groups: list[Group]
    ignored: set[str]
    shapes: dict[str, Shape]
    parameters: set[str]
    ties: dict[str, str]
    places: dict[str, Place] = field(repr=False)
    _rules: "Rules" = field(repr=False)

    @classmethod
    def of(cls, model: "PreTrainedModel", shapes: Mapping[str, Shape]) -> "Layout":
        """Lay out the tensors of a checkpoint, given by name and shape, in a model.

        The model's weights are not looked at, so it may be on the meta device.

        Raises:
            AVError: transformers cannot make the model's tensors of the checkpoint's.
        """
        from .conversion import Reader, Rules, converted_shapes, in_order

        tensors = named_tensors(model)
        first: dict[int, str] = {}
        owners = {name: first.setdefault(id(tensor), name) for name, tensor in tensors.items()}
        reader = Reader(model, dict.fromkeys(tensors, True))
        parts: dict[str, list[tuple[str, str | None]]] = {}
        ignored = set()
        for name in in_order(shapes):
            target, pattern = reader.read(name)
            if target is None or (pattern is None and target in parts):
                ignored.add(name)
            else:
                parts.setdefault(target, []).append((name, pattern))
        groups, places = [], {}
        for target, sources in parts.items():
            disk = tuple(name for name, _ in sources)
            patterns = tuple(pattern for _, pattern in sources)
            parts_shapes = {name: tuple(shapes[name]) for name in disk}
            converter = reader.converters.get(patterns[0])
            if converter is None:
                memory = {target: parts_shapes[disk[0]]}
            else:
                memory = converted_shapes(converter, target, patterns, parts_shapes, model)
            groups.append(Group(disk, memory, target, converter, patterns if converter else ()))
            counts: dict[str | None, int] = {}
            for name, pattern in sources:
                number = counts[pattern] = counts.get(pattern, -1) + 1
                places[name] = Place(owners.get(target, target), pattern, number)
        return cls(
            groups,
            ignored,
            {name: tuple(t.shape) for name, t in tensors.items() if owners[name] == name},
            {name for name, _ in model.named_parameters()},
            {name: owner for name, owner in owners.items() if owner != name},
            places,
            Rules(model, reader.used()),
        )

    @cached_property
    def missing(self) -> list[str]:
        """The parameters that nothing in the checkpoint becomes, neither they nor what is tied to them."""
        return sorted(self.parameters - set(self.by_memory))

    @cached_property
    def misshapen(self) -> list[tuple[str, Shape, Shape]]:
        """Of tensors that have another shape than the model's: name in the model, shape, its shape."""
        wanted = {**self.shapes, **{n: self.shapes[first] for n, first in self.ties.items()}}
        return [
            (name, shape, wanted[name])
            for group in self.groups
            for name, shape in group.memory.items()
            if shape != wanted.get(name)
        ]

    def owners(self, group: Group) -> set[str]:
        """Return what a group becomes, tied tensors by their first name."""
        return {self.ties.get(name, name) for name in group.memory}

    def place(self, name: str) -> Place | None:
        """Return where a tensor of the checkpoint goes; None where nothing reads it."""
        return self.places.get(name)

    @cached_property
    def by_place(self) -> dict[Place, str]:
        """Place → the tensor of the checkpoint that goes there; of tied ones that with the first name."""
        aliases = [n for n in self.places if self.by_disk[n].target in self.ties]
        names = [*aliases, *(name for name in self.places if name not in set(aliases))]
        return {self.places[name]: name for name in names}

    @cached_property
    def by_disk(self) -> dict[str, Group]:
        """Name in the checkpoint, of the tensors that are read → its group."""
        return {name: group for group in self.groups for name in group.disk}

    @cached_property
    def by_memory(self) -> dict[str, Group]:
        """Name in the model → the group that becomes it; of tied tensors the first name alone, and the
        group of another name where there is none of the first."""
        made = {name: group for group in self.groups for name in group.memory}
        tied = {self.ties[name]: made[name] for name in made if name in self.ties}
        return {**tied, **{name: made[name] for name in made if name not in self.ties}}

    @property
    def units(self) -> list[Group]:
        """The groups that together become the whole model, each of its tensors once."""
        return list({group.target: group for group in self.by_memory.values()}.values())

    def to_memory(self, group: Group, tensors: Mapping[str, torch.Tensor]) -> Tensors:
        """Return a group's tensors by their names in the model, made of the checkpoint's; often as views.

        All that is done is linear, and moves values without changing one: differences may be given
        as well as weights.
        """
        if group.converter is None:
            return {group.target: tensors[group.disk[0]]}
        from .conversion import convert

        return convert(
            group.converter, group.target, group.patterns, group.disk, tensors, self._rules
        )

    def to_disk(self, group: Group, tensors: Mapping[str, torch.Tensor]) -> Tensors:
        """Return a group's tensors by their names in the checkpoint, made of the model's; often as views.

        Raises:
            AVError: transformers does not know how (`check_reversible` tells beforehand).
        """
        if group.converter is None:
            return {group.disk[0]: tensors[group.target]}
        from .conversion import Reader, in_order, revert

        try:
            found = revert(self._rules, {n: tensors[n] for n in group.memory})
        except Exception as error:  # of its operations, which differ
            raise AVError(_irreversible(group, first_line(error))) from error
        reader = Reader(None, dict.fromkeys(group.memory, True), self._rules._weight_conversions)
        numbers: dict[str | None, int] = {}
        back = {}
        for name in in_order(found):
            _, pattern = reader.read(name)
            number = numbers[pattern] = numbers.get(pattern, -1) + 1
            of_pattern = [
                d for d, p in zip(group.disk, group.patterns, strict=True) if p == pattern
            ]
            if number >= len(of_pattern):
                raise AVError(_irreversible(group, f"{name} is none of its tensors"))
            back[of_pattern[number]] = found[name]
        if set(back) != set(group.disk):
            raise AVError(_irreversible(group, f"{len(back)} of {len(group.disk)} come back"))
        return back

    def check_whole(self, where: str) -> None:
        """Raise AVError unless every tensor of the model comes from the checkpoint, in its shape."""
        if self.missing:
            raise AVError(
                f"{where} has no tensor {self.missing[0]}, which its config.json asks for"
            )
        for name, shape, wanted in self.misshapen:
            raise AVError(f"{where}: {name} is {shape}, and its config.json asks for {wanted}")

    def check_reversible(self) -> None:
        """Raise AVError where the model's tensors cannot be turned into the checkpoint's again."""
        for group in self.groups:
            if group.converter is not None:
                shapes = {
                    name: torch.empty(shape, device="meta") for name, shape in group.memory.items()
                }
                self.to_disk(group, shapes)


def named_tensors(model: torch.nn.Module) -> Tensors:
    """Return the parameters and buffers that a model saves, by name; tied ones under each of theirs."""
    saved = set(model.state_dict(keep_vars=True))
    tensors = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    return {name: tensor for name, tensor in tensors if name in saved}


def _irreversible(group: Group, why: str) -> str:
    return (
        f"transformers makes {group.target} of {group.disk[0]} and its like, and cannot undo it "
        f"({why}): this architecture can be merged, and nothing else"
    )
