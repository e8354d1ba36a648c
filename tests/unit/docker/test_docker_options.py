"""Docker's options: the command line, the env file read as data, the bytes that come out."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyflannel.core.errors import ConfigError, UsageError
from pyflannel.docker import options as docker_options
from pyflannel.docker.options import RefusedLine, Request, UnfinishedQuote, compose, parse_shell

FLANNEL = {
    "FLANNEL_NETWORK": "10.1.0.0/16",
    "FLANNEL_SUBNET": "10.1.74.1/24",
    "FLANNEL_MTU": "1472",
    "FLANNEL_IPMASQ": "false",
}


class TestCommandLine:
    def test_without_options_everything_is_written_to_the_usual_place(self):
        options = docker_options.parse_options([])
        assert options.flannel_env == "/run/flannel/subnet.env"
        assert options.docker_env == "/run/docker_opts.env"
        assert options.request == Request(True, True, True, "DOCKER_OPTS")

    @pytest.mark.parametrize(
        ("arguments", "individual", "combined"),
        [([], True, True), (["-i"], True, False), (["-c"], False, True), (["-ic"], True, True)],
    )
    def test_neither_i_nor_c_means_both(self, arguments, individual, combined):
        request = docker_options.parse_options(arguments).request
        assert (request.individual, request.combined) == (individual, combined)

    @pytest.mark.parametrize(
        "arguments",
        [
            ["-f", "a", "-d", "b", "-m", "-k", "K"],
            ["-fa", "-db", "-mkK"],
            ["-mfa", "-kK", "-d", "b"],
            ["-f", "first", "-f", "a", "-d", "b", "-m", "-k", "K", "rest", "-i"],
            ["-f", "a", "-d", "b", "-m", "-k", "K", "--", "-i"],
            ["-f", "a", "-d", "b", "-m", "-k", "K", "-", "-i"],
        ],
    )
    def test_flags_are_read_as_getopts_reads_them(self, arguments):
        options = docker_options.parse_options(arguments)
        assert options == ("a", "b", Request(True, True, False, "K"))

    def test_an_argument_may_look_like_a_flag(self):
        assert docker_options.parse_options(["-f", "-i"]).flannel_env == "-i"

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["-x"], "Illegal option -x"),
            (["-ix"], "Illegal option -x"),
            (["--help"], "Illegal option --"),
            (["-f"], "No arg for -f option"),
            (["-ik"], "No arg for -k option"),
            (["-h"], ""),
            (["-?"], ""),
            (["-ch"], ""),
        ],
    )
    def test_a_bad_option_is_named(self, arguments, message):
        with pytest.raises(UsageError) as raised:
            docker_options.parse_options(arguments)
        assert str(raised.value) == message

    @pytest.mark.parametrize("key", ["", "X;reboot", "A-B", "1A", "A B", "Ä"])
    def test_a_key_that_is_no_variable_name_is_refused(self, key):
        """The script would run what stands there."""
        with pytest.raises(UsageError, match="not the name of a variable"):
            docker_options.parse_options(["-k", key])

    def test_the_usage_names_every_option(self):
        text = docker_options.usage("mk")
        assert text.startswith(
            "mk [-f FLANNEL-ENV-FILE] [-d DOCKER-ENV-FILE] [-i] [-c] [-m] [-k COMBINED-KEY]\n"
        )
        for letter in "fdicmk":
            assert f"\n  -{letter} " in text


class TestCompose:
    def test_the_reference_example_comes_out_to_the_byte(self):
        assert compose(FLANNEL, Request()) == (
            'DOCKER_OPT_BIP="--bip=10.1.74.1/24"\n'
            'DOCKER_OPT_IPMASQ="--ip-masq=true"\n'
            'DOCKER_OPT_MTU="--mtu=1472"\n'
            'DOCKER_OPTS=" --bip=10.1.74.1/24 --ip-masq=true --mtu=1472"\n'
        )

    @pytest.mark.parametrize(("flannel", "docker"), [("true", "false"), ("false", "true")])
    def test_exactly_one_of_the_two_masquerades(self, flannel, docker):
        text = compose({"FLANNEL_IPMASQ": flannel}, Request(combined=False))
        assert text == f'DOCKER_OPT_IPMASQ="--ip-masq={docker}"\n'

    @pytest.mark.parametrize("value", ["maybe", "TRUE", " true", "true\r", "1"])
    def test_an_invalid_masquerade_value_is_refused_in_the_scripts_words(self, value):
        with pytest.raises(ConfigError) as raised:
            compose({"FLANNEL_IPMASQ": value}, Request())
        assert str(raised.value) == f"Invalid value of FLANNEL_IPMASQ: {value}"

    def test_with_m_the_masquerade_value_is_not_looked_at(self):
        assert compose({"FLANNEL_IPMASQ": "maybe"}, Request(ip_masq=False)) == 'DOCKER_OPTS=""\n'

    def test_an_empty_value_is_as_good_as_none(self):
        empty = dict.fromkeys(FLANNEL, "")
        assert compose(empty, Request()) == 'DOCKER_OPTS=""\n'

    def test_a_combined_value_that_was_there_stays_in_front_of_two_spaces(self):
        preset = {**FLANNEL, "DOCKER_OPTS": "--log-level=warn"}
        assert compose(preset, Request(individual=False)) == (
            'DOCKER_OPTS="--log-level=warn  --bip=10.1.74.1/24 --ip-masq=true --mtu=1472"\n'
        )

    def test_another_key_has_its_own_former_value(self):
        preset = {**FLANNEL, "DOCKER_OPTS": "--unused", "X": "--x"}
        text = compose(preset, Request(individual=False, key="X"))
        assert text == 'X="--x  --bip=10.1.74.1/24 --ip-masq=true --mtu=1472"\n'

    def test_inherited_options_are_taken_along_in_the_order_of_their_names(self):
        variables = {"DOCKER_OPT_Z": "z", "DOCKER_OPT_A": "--a=b", "MY_DOCKER_OPT_Q": "q"}
        assert compose(variables, Request()) == (
            'DOCKER_OPT_A="--a=b"\nDOCKER_OPT_Z="z"\nMY_DOCKER_OPT_Q="q"\n'
            'DOCKER_OPTS=" --a=b z q"\n'
        )

    def test_an_inherited_option_gives_way_to_flannels(self):
        text = compose({**FLANNEL, "DOCKER_OPT_MTU": "--mtu=9"}, Request(combined=False))
        assert 'DOCKER_OPT_MTU="--mtu=1472"' in text

    def test_a_variable_counts_if_its_listing_has_the_mark_even_in_the_value(self):
        assert compose({"X": "DOCKER_OPT_Y"}, Request(combined=False)) == 'X="DOCKER_OPT_Y"\n'

    def test_the_words_of_a_value_are_joined_by_one_space(self):
        """A shell's field splitting does that; and a line break would tear the file."""
        text = compose({"DOCKER_OPT_X": " --a  b\t--c\nd "}, Request())
        assert text == 'DOCKER_OPT_X="--a b --c d"\nDOCKER_OPTS=" --a b --c d"\n'


class TestShellAssignments:
    @pytest.mark.parametrize(
        ("text", "variables"),
        [
            ("", {}),
            ("\n\n  \t\n", {}),
            ("A=1", {"A": "1"}),
            ("A=1\nB=2\n", {"A": "1", "B": "2"}),
            ("A=1\nA=2\n", {"A": "2"}),
            ("A=\n", {"A": ""}),
            ("  A=1  # why\n# B=2\n", {"A": "1"}),
            ("A=a#b\n", {"A": "a#b"}),
            ("A= # nothing\n", {"A": ""}),
            ("A=1 B=2\n", {"A": "1", "B": "2"}),
            ("export A=1\nexport B\nexport C='x y' D=\n", {"A": "1", "C": "x y", "D": ""}),
            ('export "A"=1\n', {"A": "1"}),
            ("A='x y'\n", {"A": "x y"}),
            ("A=\"x y\"z'w'\n", {"A": "x yzw"}),
            ("A='$(reboot) `x` $B;'\n", {"A": "$(reboot) `x` $B;"}),
            ('A="a;b|c&d(e)<f>"\n', {"A": "a;b|c&d(e)<f>"}),
            ('A="\\$x \\` \\" \\\\ \\n"\n', {"A": '$x ` " \\ \\n'}),
            ("A=a\\ b\\$c\\\\\n", {"A": "a b$c\\"}),
            ("A=a\\\nb\n", {"A": "ab"}),
            ('A="a\\\nb"\n', {"A": "ab"}),
            ("A='a\nb'\nB=1\n", {"A": "a\nb", "B": "1"}),
            ("A=a\\", {"A": "a\\"}),
            ("A=b=c\n", {"A": "b=c"}),
            ("A=*\n", {"A": "*"}),
            ("A=x~\n", {"A": "x~"}),
            ("A='~'\n", {"A": "~"}),
            ("A=1\r\n", {"A": "1\r"}),
            ("A={a,b}\n", {"A": "{a,b}"}),
            ("A=é\n", {"A": "é"}),
        ],
    )
    def test_plain_assignments_are_read_as_a_shell_reads_them(self, text, variables):
        assert parse_shell(text) == variables

    @pytest.mark.parametrize(
        ("line", "reason"),
        [
            ("A=$(reboot)", "command substitution"),
            ("A=`reboot`", "command substitution"),
            ('A="$(reboot)"', "command substitution"),
            ('A="`reboot`"', "command substitution"),
            ("A=$B", "expansion"),
            ('A="${B}"', "expansion"),
            ("A=$((1+1))", "command substitution"),
            ("A=1; reboot", "';'"),
            ("A=1 | reboot", "'|'"),
            ("A=1 & reboot", "'&'"),
            ("A=1 > /etc/passwd", "'>'"),
            ("A=1 < /dev/zero", "'<'"),
            ("f() { reboot; }", "'('"),
            ("A=(1 2)", "'('"),
            ("reboot", "the command 'reboot'"),
            ("A=1 reboot", "the command 'reboot'"),
            ("'A'=1", "the command 'A=1'"),
            ("1A=1", "the command '1A=1'"),
            ("A+=1", "the command"),
            (". /etc/profile", "the command '.'"),
            ("unset A", "the command 'unset'"),
            ("export", "the command 'export'"),
            ("export -p", "the command 'export'"),
            ("export 1A=1", "not a variable's name"),
            ("export A=*", "file names"),
            ("A=~/x", "home directory"),
            ("A=/x:~/y", "home directory"),
            ("A=1\0", "NUL"),
        ],
    )
    def test_what_would_run_or_be_expanded_is_refused_with_its_line(self, line, reason):
        with pytest.raises(RefusedLine, match=r"^line 3: ") as raised:
            parse_shell(f"OK=1\n# a comment\n{line}\nLATER=1\n")
        assert reason in str(raised.value)
        assert raised.value.line == 3

    @pytest.mark.parametrize("text", ["A=1\nB='x\ny\n", 'A=1\nB="x\ny\n'])
    def test_a_torn_quote_is_told_by_the_line_it_begins_on(self, text):
        with pytest.raises(UnfinishedQuote, match=r"^line 2: "):
            parse_shell(text)

    @given(st.text(alphabet=st.characters(exclude_characters="\0'", exclude_categories=["Cs"])))
    def test_text_within_single_quotes_comes_back_unchanged(self, value):
        assert parse_shell(f"A='{value}'\n") == {"A": value}

    @given(st.text(alphabet=string.ascii_letters + " =\t\n'\"\\$`;|&()<>~*#\0", max_size=30))
    def test_any_text_is_either_read_or_refused(self, text):
        lines = range(1, text.count("\n") + 2)
        try:
            variables, line = parse_shell(text), 1
        except RefusedLine as refused:
            variables, line = {}, refused.line
        assert line in lines
        assert all(name.isidentifier() for name in variables)


class TestNothingComesAlive:
    @pytest.mark.parametrize("value", ["$(reboot)", "`reboot`", 'a"; reboot; "', "a\\", "$HOME"])
    def test_a_value_from_the_file_that_the_next_shell_would_run_is_refused(self, value):
        with pytest.raises(ConfigError, match="FLANNEL_MTU"):
            docker_options.refuse_active({"FLANNEL_MTU": value}, Request())
        with pytest.raises(ConfigError, match="DOCKER_OPT_X"):
            docker_options.refuse_active({"DOCKER_OPT_X": value}, Request())
        with pytest.raises(ConfigError, match=r"^K: "):
            docker_options.refuse_active({"K": value}, Request(key="K"))

    def test_a_value_that_is_not_written_may_be_anything(self):
        docker_options.refuse_active({"COMMENT": 'costs $5 "or so"'}, Request())


class TestRouteCheck:
    ROUTES = "default via 192.0.2.254 dev eth0 \n10.1.74.0/24 via 192.0.2.7 dev eth0 \n"

    def test_a_route_to_our_subnet_through_a_gateway_is_told(self):
        line = docker_options.routed_already(FLANNEL, self.ROUTES)
        assert line == "10.1.74.0/24 via 192.0.2.7 dev eth0 "

    @pytest.mark.parametrize(
        "routes",
        [
            "",
            "10.1.74.0/24 dev docker0 proto kernel scope link src 10.1.74.1 \n",
            "110.1.74.0/24 via 192.0.2.7 dev eth0 \n",
            "10.1.75.0/24 via 192.0.2.7 dev eth0 \n",
        ],
    )
    def test_other_routes_do_not_matter(self, routes):
        assert docker_options.routed_already(FLANNEL, routes) == ""

    @pytest.mark.parametrize("subnet", ["", "fd00::1/64", "10.1.74.0/24", "10.1.74.1", "garbage"])
    def test_what_is_no_gateway_address_is_not_checked(self, subnet):
        assert docker_options.routed_already({"FLANNEL_SUBNET": subnet}, self.ROUTES) == ""
