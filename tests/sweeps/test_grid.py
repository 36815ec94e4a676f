import pytest

from secateur.errors import InputError
from secateur.recipe import Recipe
from secateur.sweeps.grid import Grid

MODELS = {"models": ["a"]}


def labels(grid):
    return [variant.labels for variant in grid.variants]


def recipes(grid):
    return [row.recipe for variant in grid.variants for row in grid.rows("a", variant)[:1]]


def test_later_layers_win():
    grid = Grid.from_dict(
        MODELS
        | {
            "base": {"preset": "paper", "samples": 3, "length": 20, "pattern": "4:8", "alpha": 0.1},
            "recipes": {"own": {"length": 30}, "good": {"preset": "good"}, "unstructured": {"sparsity": 0.7}},
            "grid": {"alpha": [0.2, 0.3]},
        }
    )
    own, _, good, _, unstructured, _ = recipes(grid)
    assert own == Recipe(permute="lsa-published", samples=3, length=30, pattern="4:8", alpha=0.2)
    assert good == Recipe(score="sparsegpt", reconstruct="admm", samples=3, length=20, pattern="4:8", alpha=0.2)
    assert (unstructured.sparsity, unstructured.pattern) == (0.7, None)


def test_a_pattern_is_a_text_wherever_it_stands(tmp_path):
    (tmp_path / "g.yaml").write_text(
        "models: {1:8: here}\nrecipes: {2:4: {pattern: 2:4}, 4:8: {pattern: 4:8}}\nseeds: [7, +1]\n"
        "grid: {alpha: [0.5, 1]}\nevaluate: {window: 128}\n"
    )
    grid = Grid.load(tmp_path / "g.yaml")
    assert grid.models == {"1:8": "here"}
    assert labels(grid) == [("2:4", "0.5"), ("2:4", "1"), ("4:8", "0.5"), ("4:8", "1")]
    assert [recipe.pattern for recipe in recipes(grid)] == ["2:4", "2:4", "4:8", "4:8"]
    assert [row.seed for row in grid.rows("a", grid.variants[0])] == [7, 1]
    assert grid.protocol.window == 128


def test_the_grid_of_the_docstring_is_one():
    from secateur.sweeps import grid as module

    text = module.__doc__.split("\n\n", 2)[2]
    grid = Grid.from_dict(module._Loader(text).get_single_data())
    assert len(grid.variants) == 4 * 2 * 2
    assert grid.axes == ("recipe", "pattern", "order")


def test_combinations_without_sense_or_difference_are_left_out_and_named():
    grid = Grid.from_dict(
        MODELS | {"grid": {"target": {"half": {"sparsity": 0.5}, "2:4": {"pattern": "2:4"}}, "scope": ["row", None]}}
    )
    assert labels(grid) == [("half", "row"), ("half", "none"), ("2:4", "none")]
    (skipped,) = grid.skipped
    assert skipped.labels == ("2:4", "row")
    assert "--scope row has no meaning" in skipped.reason
    grid = Grid.from_dict(
        MODELS
        | {"grid": {"target": {"half": {"sparsity": 0.5}, "2:4": {"pattern": "2:4"}}, "permute": ["none", "lsa"]}}
    )
    assert labels(grid) == [("half", "none"), ("2:4", "none"), ("2:4", "lsa")]
    assert [one.reason for one in grid.skipped] == ["it is the same as half none"]


def test_seeds_that_make_no_difference_are_one_row():
    grid = Grid.from_dict(
        MODELS
        | {
            "recipes": {
                "magnitude": {"score": "magnitude"},
                "ordered": {"score": "magnitude", "pattern": "2:4"},  # the search draws by it
                "ria": {"score": "ria"},
            },
            "seeds": [3, 4],
        }
    )
    rows = [grid.rows("a", variant) for variant in (grid.dense, *grid.variants)]
    assert list(map(len, rows)) == [1, 1, 2, 2]
    assert [row.recipe and row.recipe.seed for row in rows[-1]] == [row.seed for row in rows[-1]] == [3, 4]


def test_without_recipes_there_is_one():
    grid = Grid.from_dict(MODELS)
    assert labels(grid) == [("ria 50 %",)]
    assert grid.protocol.data == ("wikitext2",)
    assert grid.baseline_of(grid.variants[0]) is None


def test_a_baseline_is_on_the_other_axes_where_the_row_is():
    recipes = {"magnitude": {"score": "magnitude"}, "ria": {"score": "ria"}}
    given = {"recipes": recipes, "grid": {"pattern": ["2:4", "4:8"]}, "baseline": {"recipe": "magnitude"}}
    grid = Grid.from_dict(MODELS | given)
    assert [grid.baseline_of(variant) for variant in grid.variants] == [("magnitude", "2:4"), ("magnitude", "4:8")] * 2


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "grid is not a mapping"),
        ({}, "names no models"),
        ({"models": "a"}, "models is not a list"),
        (MODELS | {"recipe": {}}, "unknown key 'recipe'; did you mean 'recipes'"),
        (MODELS | {"evaluate": {"windw": 3}}, "evaluate has an unknown key 'windw'; did you mean 'window'"),
        (MODELS | {"evaluate": {"window": "wide"}}, "evaluate: Expected `int \\| null`, got `str`"),
        (MODELS | {"base": {"scor": "ria"}}, "base has an unknown key 'scor'; did you mean 'score'"),
        (MODELS | {"recipes": {"x": {"scor": "ria"}}}, "recipes: x has an unknown key 'scor'"),
        (MODELS | {"recipes": ["bset"]}, "did you mean 'best'"),
        (MODELS | {"recipes": {"dense": {}}}, "give another name"),
        (MODELS | {"recipes": {"x": {"score": "best"}}}, "no row can have recipe x: recipe: Invalid enum value 'best'"),
        (MODELS | {"grid": {"scor": ["ria"]}}, "grid has an unknown key 'scor'; did you mean 'score'"),
        (MODELS | {"grid": {"score": []}}, "score has no values"),
        (MODELS | {"grid": {"score": ["ria", "ria"]}}, "lists a value twice"),
        (MODELS | {"grid": {"score": ["ria", "wand"]}}, "no row can have score wand"),
        (MODELS | {"grid": {"score": ["ria"], "x": {"y": {"score": "ri"}}}}, "score and x both set score"),
        (
            MODELS | {"grid": {"pattern": ["2:4"], "sparsity": [0.5]}},
            "pattern and sparsity both set sparsity or pattern",
        ),
        (MODELS | {"grid": {"seed": [1, 2]}}, "seed is a column already"),
        (MODELS | {"grid": {"rows": {"x": {}}}}, "rows is a column already"),
        (MODELS | {"recipes": {1: {}, "1": {}}}, "recipes has '1' twice"),
        (MODELS | {"seeds": 3}, "seeds: Expected `array`"),
        (MODELS | {"seeds": [-1]}, "seed -1"),
        (MODELS | {"recipes": {"x": {}}, "baseline": {"recipe": "y"}}, "there is no recipe y; recipe: x"),
    ],
)
def test_bad_grids_are_refused(data, message):
    with pytest.raises(InputError, match=message):
        Grid.from_dict(data)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "not YAML"),
        ("recipes: {x: {}, x: {}}", "'x' is given twice"),
        ("? {a: 1}\n: 3", "not YAML"),
    ],
)
def test_bad_files_are_refused(tmp_path, text, message):
    (tmp_path / "g.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        Grid.load(tmp_path / "g.yaml")
    with pytest.raises(InputError, match="No such file"):
        Grid.load(tmp_path / "none.yaml")
