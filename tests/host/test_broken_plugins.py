"""Whatever a plugin does wrong is reported with its name, and breaks nothing else."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from qconv._host import PluginRecord, load_plugins
from qconv.errors import BrokenPlugin

if TYPE_CHECKING:
    from host.conftest import Install

HEAD = "from qconv.plugin import BackendSpec, FormatSpec, MethodSpec, OptionSpec, hookimpl\n"
METHOD = "MethodSpec(name={!r}, summary='', api_version=1, load=lambda: None)"
TWO = METHOD.format("one"), METHOD.format("two")


def methods(*lines: str) -> str:
    return HEAD + "@hookimpl\ndef qconv_methods():\n" + "".join(f"    {line}\n" for line in lines)


def formats(*names: str) -> str:
    specs = "".join(f"FormatSpec(name={name!r}, summary='')," for name in names)
    return (
        HEAD + "@hookimpl\ndef qconv_backends():\n    yield BackendSpec(name='strange', "
        f"summary='', formats=({specs}), api_version=1, load=lambda: None)\n"
    )


BROKEN = {
    "missing import": (
        "import a_library_nobody_has",
        "import failed: ModuleNotFoundError: No module named 'a_library_nobody_has'",
    ),
    "syntax error": ("def (:", "import failed: SyntaxError"),
    "exit at import": ("import sys; sys.exit(3)", r"import called sys.exit\(3\)"),
    "exit in a hook": (
        methods("raise SystemExit('bye')"),
        r"qconv_methods called sys.exit\('bye'\)",
    ),
    "wrong signature": (
        HEAD + "@hookimpl\ndef qconv_methods(config):\n    yield\n",
        r"does not match its specification: .*qconv_methods\(config\)",
    ),
    "misspelt hook": (
        HEAD + "@hookimpl\ndef qconv_method():\n    yield\n",
        "no hook 'qconv_method'; did you mean qconv_methods",
    ),
    "misspelt hook without a marker": (
        "def qconv_backend():\n    yield\n",
        "no hook 'qconv_backend'; did you mean qconv_backends",
    ),
    "hook without a marker": (
        "def qconv_methods():\n    yield\n",
        "'qconv_methods' is not marked as a hook",
    ),
    "no hook": ("x = 1", "implements no hook"),
    "hook raises": (methods("raise ValueError('no\\nluck')"), "failed: ValueError: no luck"),
    "error that cannot be printed": (
        "class Bad(Exception):\n    def __str__(self): raise RuntimeError\nraise Bad",
        r"import failed: Bad: \(its message cannot be printed\)",
    ),
    "half a yield": (methods(f"yield {TWO[0]}", "1 / 0"), "ZeroDivisionError"),
    "yields a dict": (methods("yield {'name': 'x'}"), "yielded a dict, not a MethodSpec"),
    "yields a class": (methods("yield MethodSpec"), "yielded the class MethodSpec, not a Meth"),
    "yields another spec": (
        methods("yield FormatSpec(name='x', summary='')"),
        "yielded a FormatSpec, not a MethodSpec",
    ),
    "returns one spec": (methods(f"return {TWO[0]}"), "returned a MethodSpec; it must yield"),
    "returns nothing": (methods("pass"), "returned None; it must yield"),
    "another API version": (
        methods(f"yield {TWO[0].replace('version=1', 'version=2')}"),
        "method 'one' was written for plugin API version 2, this qconv speaks version 1",
    ),
    "API version that only equals ours": (
        methods(f"yield {TWO[0].replace('version=1', 'version=True')}"),
        "plugin API version True",
    ),
    "illegal name": (methods(f"yield {METHOD.format('Rtn:2')}"), "name 'Rtn:2' is not allowed"),
    "name that is no text": (methods(f"yield {METHOD.format(3)}"), "name 3 is not allowed"),
    "summary that is no text": (
        methods(f"yield {TWO[0].replace(chr(39) * 2, '7')}"),
        "method 'one': summary is a int, not a str",
    ),
    "load that is no function": (
        methods(f"yield {TWO[0].replace('lambda: None', '5')}"),
        "method 'one': load is a int",
    ),
    "taken method": (methods(f"yield {METHOD.format('rtn')}"), "'rtn' is taken by qconv 9.9"),
    "taken but for spelling": (methods(f"yield {METHOD.format('r_tn')}"), "is taken by qconv 9.9"),
    "taken backend": (
        formats("x").replace("strange", "gguf"),
        "backend 'gguf' is taken by qconv 9.9; rename it",
    ),
    "twice the same": (
        methods(f"yield {TWO[0]}", f"yield {TWO[0]}"),
        "taken by this plugin itself",
    ),
    "backend without formats": (formats(), "backend 'strange': formats must be a tuple"),
    "format twice": (formats("q4_0", "q4-0"), "format 'q4-0' appears twice"),
    "illegal format": (formats("q4,0"), "backend 'strange': format name 'q4,0' is not allowed"),
    "options that are no tuple": (
        formats("x").replace("api_version", "options=[], api_version"),
        "options must be a tuple of OptionSpec",
    ),
}


def stranger() -> PluginRecord:
    (record,) = [item for item in load_plugins().listing() if item.distribution == "stranger"]
    return record


@pytest.mark.parametrize(("source", "reason"), BROKEN.values(), ids=BROKEN.keys())
def test_broken_plugin_says_why_and_ours_still_work(
    install: Install, source: str, reason: str
) -> None:
    install("stranger", {"strange": "stranger_plugin"}, {"stranger_plugin": source})
    record = stranger()
    assert record.status == "broken"
    assert re.search(reason, record.reason)
    assert "\n" not in record.reason
    assert record.label == "plugin 'strange' of stranger 1.0"
    host = load_plugins()
    assert type(host.method("rtn")).__module__ == "fake_ours"
    assert [spec.name for spec in host.backends] == ["gguf"]


def test_specs_yielded_before_the_failure_do_not_count(install: Install) -> None:
    source = methods(f"yield {TWO[0]}", "1 / 0")
    install("stranger", {"strange": "stranger_plugin"}, {"stranger_plugin": source})
    assert [spec.name for spec in load_plugins().methods] == ["rtn"]
    with pytest.raises(BrokenPlugin, match=r"method 'one'.*'strange' of stranger 1.0 is broken"):
        load_plugins().method("one")


def test_a_broken_plugin_is_named_when_its_entry_point_is_asked_for(install: Install) -> None:
    install("stranger", {"strange": "stranger_plugin"}, {"stranger_plugin": "import nowhere_x"})
    with pytest.raises(BrokenPlugin, match="No module named 'nowhere_x'") as caught:
        load_plugins().resolve_target("strange:q4")
    assert caught.value.exit_code == 7


def test_keyboard_interrupt_is_not_swallowed(install: Install) -> None:
    source = "raise KeyboardInterrupt"
    install("stranger", {"strange": "stranger_plugin"}, {"stranger_plugin": source})
    with pytest.raises(KeyboardInterrupt):
        load_plugins()


def test_entry_point_named_like_ours_is_refused_unloaded(install: Install) -> None:
    install("stranger", {"ours": "stranger_plugin"}, {"stranger_plugin": "raise KeyboardInterrupt"})
    assert re.search(
        r"'ours' is taken by qconv 9.9; stranger must choose another", stranger().reason
    )


def test_entry_point_to_nowhere_is_reported(install: Install) -> None:
    install("stranger", {"strange": "no_such_module_x:thing"}, {})
    assert "No module named 'no_such_module_x'" in stranger().reason


def test_malformed_entry_points_are_reported_and_stop_nothing(install: Install) -> None:
    install("stranger", "[qconv.plugins]\nthis line says nothing\n", {})
    record = stranger()
    assert (record.status, record.entry_point) == ("broken", "?")
    assert "entry_points.txt is malformed" in record.reason
    assert load_plugins().method("rtn")


def test_prints_while_loading_go_to_stderr(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    source = "print('at import')\n" + methods("print('in hook')", f"yield {TWO[0]}")
    install("stranger", {"strange": "stranger_plugin"}, {"stranger_plugin": source})
    assert stranger().status == "ok"
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "at import" in captured.err
    assert "in hook" in captured.err


def test_a_broken_stranger_reserves_no_name_for_itself(install: Install) -> None:
    install("a-broken", {"a": "a_plugin"}, {"a_plugin": methods(f"yield {TWO[0]}", "1 / 0")})
    install("b-sound", {"b": "b_plugin"}, {"b_plugin": methods(f"yield {TWO[0]}")})
    assert [spec.name for spec in load_plugins().methods] == ["rtn", "one"]
