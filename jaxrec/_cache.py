"""JAX's cache of compiled programs, kept between processes."""

from __future__ import annotations

import os
import pathlib

import jax
import platformdirs


def compilation_cache(folder: str | os.PathLike | None = None) -> pathlib.Path:
    """Keeps compiled programs in a folder, so that the next process need not compile them again.

    Call it once, before the first computation. JAX's own defaults keep only programs that took a
    second or more to compile; this keeps all of them. A program is compiled again if its shapes,
    its settings, the device or the version of JAX differ.

    Args:
        folder: where to keep the programs; None is `$JAXREC_CACHE/compiled`, or `jaxrec/compiled`
            in the cache folder of the operating system. It can be deleted at any time.

    Returns:
        The folder.

    Raises:
        OSError: if the folder cannot be created.
    """
    path = pathlib.Path(folder) if folder is not None else cache_folder() / "compiled"
    path.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return path


def cache_folder() -> pathlib.Path:
    """Returns `$JAXREC_CACHE`, or `jaxrec` in the cache folder of the operating system."""
    return pathlib.Path(os.environ.get("JAXREC_CACHE") or platformdirs.user_cache_path("jaxrec"))
