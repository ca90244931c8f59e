"""What the documents tell one to type exists: targets of make, commands and their options, the chart's values, fields of objects."""

import functools
import json
import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest
import typer
import yaml
from markdown_it import MarkdownIt

from equipoise_api.policy import FairnessPolicy
from equipoise_api.tenant import Tenant
from equipoise_cli.main import app
from equipoise_simulator.contender import Contender

ROOT = Path(__file__).parents[3]
PAGES = sorted(
    [*ROOT.glob("docs/**/*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks/README.md"]
)
POLICY = yaml.safe_load((ROOT / "manifests/examples/policy.yaml").read_text())
KINDS = {"FairnessPolicy": FairnessPolicy, "Tenant": Tenant}


def code(text):
    """Every piece of code in a document, with its language."""
    for token in MarkdownIt().enable("table").parse(text):
        if token.type == "fence":
            yield token.info, token.content
        for child in token.children or []:
            if child.type == "code_inline":
                yield "", child.content


def commands(text):
    """Every command line in a document, as words. A line that ends in a backslash goes on."""
    for language, content in code(text):
        if language:
            continue
        for line in content.replace("\\\n", " ").splitlines():
            if re.match(r"(\$ )?(\.venv/bin/)?(equipoise|make|helm|kubectl) [a-z]", line):
                words = shlex.split(line.removeprefix("$ "), comments=True)
                yield [words[0].removeprefix(".venv/bin/"), *words[1:]]


def manifests(text):
    for language, content in code(text):
        if language == "yaml":
            yield from yaml.safe_load_all(content)


WORDS = [(page, words) for page in PAGES for words in commands(page.read_text())]
OBJECTS = [(page, each) for page in PAGES for each in manifests(page.read_text())]


def of(program):
    found = [(page, words) for page, words in WORDS if words[0] == program]
    assert found
    return pytest.mark.parametrize(
        "words", [words for _, words in found], ids=[str(page.name) for page, _ in found]
    )


def fields(schema, path=()):
    """Dotted paths of all fields of a structural schema, those of a list's items as if they were the list's."""
    schema = schema.get("items", schema)
    for name, field in schema.get("properties", {}).items():
        yield ".".join((*path, name))
        yield from fields(field, (*path, name))


@functools.cache
def known_fields():
    found = set()
    for crd in ROOT.glob("charts/equipoise/files/crds/*.yaml"):
        (version,) = yaml.safe_load(crd.read_text())["spec"]["versions"]
        properties = version["schema"]["openAPIV3Schema"]["properties"]
        parts = {name: properties[name] for name in ("spec", "status")}
        found |= {*fields(parts["spec"]), *fields(parts["status"]), *fields({"properties": parts})}
    return found


def named_fields(text):
    """What looks like the path of a field: dotted camelCase words in code."""
    for language, content in code(text):
        if not language:
            yield from re.findall(r"(?<![\w./$-])([a-z]\w+(?:\.\w+)+)", content)


def unknown_fields(text, known):
    roots = {field.partition(".")[0] for field in known}
    return [name for name in named_fields(text) if name.partition(".")[0] in roots and name not in known]


def merged(base, patch):
    """RFC 7386."""
    if not isinstance(patch, dict):
        return patch
    base = base if isinstance(base, dict) else {}
    result = base | {key: merged(base.get(key), value) for key, value in patch.items()}
    return {key: value for key, value in result.items() if value is not None}


@of("make")
def test_a_target_exists_and_make_lists_it(words):
    listed = re.findall(r"^([a-z0-9-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert [word for word in words[1:] if "=" not in word and word not in listed] == []


@of("equipoise")
def test_a_command_has_the_options_that_are_shown(words):
    command, rest = typer.main.get_command(app), words[1:]
    while rest and rest[0] in getattr(command, "commands", {}):
        command, rest = command.commands[rest[0]], rest[1:]
    assert not hasattr(command, "commands"), f"no such command: {rest[0]}"
    context = typer.Context(command)
    command.make_parser(context).parse_args(list(rest))
    for option, value in pairwise(rest):
        if option == "--scheduler":
            Contender.parse(value)


@of("helm")
def test_the_chart_has_the_values_that_are_set(words):
    values = yaml.safe_load((ROOT / "charts/equipoise/values.yaml").read_text())
    for option, setting in pairwise(words):
        if option == "--set":
            found = values
            for key in setting.partition("=")[0].split("."):
                assert key in found, setting
                found = found[key]


@of("kubectl")
def test_a_file_that_is_applied_is_there_and_a_patch_gives_a_valid_policy(words):
    for option, value in pairwise(words):
        if option == "-f":
            assert (ROOT / value).exists(), value
        if option == "-p":
            FairnessPolicy.strictly(merged(POLICY, json.loads(value)))


@pytest.mark.parametrize(
    "document", [each for _, each in OBJECTS], ids=[str(page.name) for page, _ in OBJECTS]
)
def test_an_object_is_valid_whole_or_as_a_part_of_a_policy(document):
    kind = KINDS[document.get("kind", "FairnessPolicy")]
    kind.strictly(document if "kind" in document else merged(POLICY, document))


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_field_that_is_named_exists(page):
    assert unknown_fields(page.read_text(), known_fields()) == []


def test_a_field_that_does_not_exist_is_found():
    text = "`capacity.headroomPercnt`, `spec.slo.ttftMilliseconds`, `tokens/`, `identity.apiKeys.secretName`"
    assert unknown_fields(text, known_fields()) == ["capacity.headroomPercnt"]


def test_commands_are_found_in_blocks_and_in_lines():
    text = "`equipoise demo` and `make x`\n\n```\n$ equipoise simulate \\\n  --suite 'a b'  # why\n```\n\n```yaml\nmake: up\n```\n"
    assert list(commands(text)) == [
        ["equipoise", "demo"],
        ["make", "x"],
        ["equipoise", "simulate", "--suite", "a b"],
    ]
