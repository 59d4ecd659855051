"""Operations."""

from . import extract_patches

__all__ = ["extract_patches"]
