"""Kubernetes objects as YAML text, files and decoded values: what policies and services come as."""

from pyciliumlib.documents.source import ObjectInput, read_objects

__all__ = ["ObjectInput", "read_objects"]
