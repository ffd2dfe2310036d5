"""The one thing that pyproject.toml cannot say: which extension cffi is to build."""

from setuptools import setup

setup(cffi_modules=["native/build_ffi.py:make_ffi"])
