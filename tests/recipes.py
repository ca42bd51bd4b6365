"""Recipes, which are scripts, as modules to test."""

import importlib.util
from pathlib import Path

RECIPES = Path(__file__).parent.parent / "recipes"


def load_recipe(name):
    spec = importlib.util.spec_from_file_location(name, RECIPES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
