"""How mergekit reads the tensors of an alignment vector, whatever they are stored as."""

from pathlib import Path

from mergekit.common import ModelReference
from mergekit.io.lazy_tensor_loader import LazyTensorLoader, ShardedTensorIndex
from mergekit.io.tasks import LoaderCache
from torch import Tensor

from mergekit_av.vectors.delta import Delta


class DeltaLoader(LazyTensorLoader):
    """mergekit's view of a vector: dense tensors by the names of the base's."""

    def __init__(self, delta: Delta):
        paths = dict.fromkeys(delta.names(), "")
        super().__init__(ShardedTensorIndex(str(delta.folder), True, paths, []))
        self.delta = delta

    def get_tensor(
        self,
        key: str,
        device: str = "cpu",
        aliases: list[str] | None = None,
        raise_on_missing: bool = True,
    ) -> Tensor | None:
        for name in (key, *(aliases or ())):
            if name in self.index.tensor_paths:
                with self.lock:
                    return self.delta.dense(name, device)
        if raise_on_missing:
            raise KeyError(key)
        return None

    def flush(self) -> None:
        self.delta.release()


def folder_of_vector(vector: ModelReference) -> Path:
    """Return where a vector is; a Hub id is asked for once."""
    loader = LoaderCache().loaders.get(vector)
    if loader is not None:
        return Path(loader.index.base_path)
    return Path(vector.local_path(cache_dir=LoaderCache().hf_cache_dir))


def read_through(vector: ModelReference, delta: Delta) -> None:
    """Let mergekit read a vector's tensors through its delta, in all merges from now on."""
    LoaderCache().loaders[vector] = DeltaLoader(delta)
