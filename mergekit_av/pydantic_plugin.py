"""How plain `mergekit-yaml` finds the merge method.

mergekit 0.1.5 has no plugin discovery; its `MergeConfiguration`, the model that reads every
recipe, is a pydantic model, and pydantic has: the entry-point group `pydantic`. pydantic asks this
plugin about each model of the whole environment, so loading it must cost nothing: mergekit and
torch are imported only when a recipe is read.
"""

from typing import Any


class _RecipeEvents:
    """Called around the validation of a recipe."""

    @staticmethod
    def on_enter(input: Any, **settings: Any) -> None:
        from mergekit_av.io.yaml import refuse_unfolding
        from mergekit_av.merge.keys import check_keys
        from mergekit_av.merge.method import register
        from mergekit_av.merge.recipe import METHOD

        register()
        if isinstance(input, dict) and input.get("merge_method") == METHOD:
            refuse_unfolding(input, "the recipe")
        check_keys(input)

    @staticmethod
    def on_success(result: Any) -> None:
        from mergekit_av.merge.recipe import check_recipe

        check_recipe(result)


class _Plugin:
    def new_schema_validator(
        self, schema, schema_type, schema_type_path, schema_kind, config, plugin_settings
    ):
        path = schema_type_path
        if (path.module, path.name) == ("mergekit.config", "MergeConfiguration"):
            return _RecipeEvents, _RecipeEvents, _RecipeEvents
        return None, None, None


plugin = _Plugin()
