"""`edgesdk recipe list|show`."""

from __future__ import annotations

from typing import Annotated

import typer
import yaml

from edgesdk.cli.output import print_json, print_table, stdout

app = typer.Typer(help="The recipes that come with EdgeSDK.", no_args_is_help=True)


@app.command("list", epilog="Example: edgesdk recipe list")
def list_recipes(json: Annotated[bool, typer.Option("--json", help="print one JSON document")] = False) -> None:
    """Names and purposes of the presets."""
    from edgesdk.recipe import FP32, load_recipes, preset_names

    recipes = [FP32, *(recipe for name in preset_names() for recipe in load_recipes(name))]
    if json:
        print_json([{"name": recipe.name, "description": recipe.description} for recipe in recipes])
        return
    rows = [(r.name, " → ".join(stage.name for stage in r.stages) or "–", r.description) for r in recipes]
    print_table(("recipe", "stages", "purpose"), rows)


@app.command("show", epilog="Example: edgesdk recipe show small > recipe.yaml")
def show(
    name: Annotated[str, typer.Argument(help="preset or recipe.yaml")],
    json: Annotated[bool, typer.Option("--json", help="print one JSON document")] = False,
) -> None:
    """A recipe with every default written out, ready to be edited."""
    from edgesdk.recipe import load_recipes

    documents = [recipe.plain() for recipe in load_recipes(name)]
    if json:
        print_json(documents if len(documents) > 1 else documents[0])
        return
    stdout.print("---\n".join(yaml.safe_dump(d, sort_keys=False) for d in documents), markup=False, end="")
