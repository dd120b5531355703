from l7lb.control.names import suggestion


def test_the_nearest_name_is_suggested_whatever_its_case() -> None:
    assert suggestion("Wbe1", ["web1", "api1"]) == "did you mean web1?"
    assert suggestion("API", ["web1", "api"]) == "did you mean api?"


def test_without_a_near_one_the_first_are_listed() -> None:
    assert suggestion("zzz", ["web1", "api1"]) == "known: api1, web1"
    assert suggestion("zzz", [f"s{number}" for number in range(10)]).endswith("s7 and 2 more")


def test_where_there_are_none_it_says_so() -> None:
    assert suggestion("web", []) == "there are none"
