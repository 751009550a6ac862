"""The word lists of the demo language. No sentence is built here."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _pairs(text: str) -> tuple[tuple[str, str], ...]:
    """`left/right` words."""
    return tuple((pair.split("/")[0], pair.split("/")[1]) for pair in text.split())


WOMEN = _words(
    "Mary Anna Lucy Emma Clara Julia Sarah Laura Alice Nina Rosa Helen Jane Ruth Eva Ida Grace Irene Marie Olga "
    "Paula Sophie Tina Vera Wendy Karen Lisa Diana Judy Kate Amy Carol Nora Ellen"
)
MEN = _words(
    "John Tom Paul Peter James Mark David Henry Simon Victor Oscar Frank George Adam Bob Carl Daniel Eric Felix Hugo "
    "Ivan Jack Kevin Leo Martin Noah Oliver Robert Samuel Walter Alex Luke Max Ben"
)
NAMES = WOMEN + MEN

PLACES = _words(
    "store park school market garden station library beach restaurant hospital office museum bank farm harbor "
    "village theater castle bakery kitchen"
)
THINGS = _words(
    "drink book ball ring key letter flower coin cake hat map lamp gift bottle basket ticket picture sandwich "
    "pencil knife blanket watch guitar jacket"
)


def _rows(text: str) -> tuple[tuple[str, str, str, str], ...]:
    """A line `country capital language continent` each."""
    return tuple((row.split()[0], row.split()[1], row.split()[2], row.split()[3]) for row in text.strip().splitlines())


COUNTRIES = _rows("""
France Paris French Europe
Germany Berlin German Europe
Italy Rome Italian Europe
Spain Madrid Spanish Europe
Portugal Lisbon Portuguese Europe
Greece Athens Greek Europe
Poland Warsaw Polish Europe
Russia Moscow Russian Europe
Norway Oslo Norwegian Europe
Sweden Stockholm Swedish Europe
Denmark Copenhagen Danish Europe
Finland Helsinki Finnish Europe
Hungary Budapest Hungarian Europe
Austria Vienna German Europe
Ireland Dublin English Europe
England London English Europe
Bulgaria Sofia Bulgarian Europe
Romania Bucharest Romanian Europe
Ukraine Kyiv Ukrainian Europe
Serbia Belgrade Serbian Europe
Croatia Zagreb Croatian Europe
Iceland Reykjavik Icelandic Europe
Latvia Riga Latvian Europe
Turkey Ankara Turkish Asia
Egypt Cairo Arabic Africa
Kenya Nairobi Swahili Africa
Ghana Accra English Africa
Morocco Rabat Arabic Africa
Senegal Dakar French Africa
China Beijing Chinese Asia
Japan Tokyo Japanese Asia
Thailand Bangkok Thai Asia
Vietnam Hanoi Vietnamese Asia
Iran Tehran Persian Asia
Iraq Baghdad Arabic Asia
Nepal Kathmandu Nepali Asia
Syria Damascus Arabic Asia
Cuba Havana Spanish America
Peru Lima Spanish America
Chile Santiago Spanish America
Canada Ottawa English America
Ecuador Quito Spanish America
Uruguay Montevideo Spanish America
Venezuela Caracas Spanish America
Brazil Brasilia Portuguese America
Colombia Bogota Spanish America
""")

OPPOSITES = _pairs(
    "hot/cold big/small old/young good/bad fast/slow high/low long/short rich/poor strong/weak light/dark "
    "early/late open/closed full/empty hard/soft wet/dry loud/quiet happy/sad clean/dirty thick/thin "
    "deep/shallow sharp/blunt brave/afraid up/down left/right day/night north/south love/hate"
)

SPANS = _words("war siege reign project journey trial strike drought expedition alliance famine rebellion voyage truce dynasty partnership")

# (singular, plural)
NOUNS = _pairs(
    "key/keys cabinet/cabinets door/doors window/windows dog/dogs cat/cats book/books boy/boys girl/girls "
    "teacher/teachers doctor/doctors car/cars picture/pictures house/houses table/tables box/boxes tree/trees "
    "river/rivers road/roads farmer/farmers child/children man/men woman/women bird/birds horse/horses "
    "chair/chairs lamp/lamps letter/letters flower/flowers bridge/bridges painter/painters sailor/sailors "
    "ship/ships stone/stones coat/coats cup/cups clock/clocks king/kings mouse/mice wall/walls"
)
PREPOSITIONS = _words("to near behind beside with of above under by from")
TRAITS = _words("old new big small heavy clean dirty red green blue white black beautiful strange quiet strong famous tall lost ready")
# (singular, plural, how often)
VERBS = (
    ("is", "are", 20),
    ("was", "were", 5),
    ("has", "have", 2),
    ("looks", "look", 1),
    ("seems", "seem", 1),
    ("needs", "need", 1),
)

REVIEWED = _words("movie film food service hotel room book song play meal staff show concert phone trip game soup coffee lesson story")
PRAISE = _words("good great wonderful excellent lovely pleasant amazing charming brilliant superb fine delightful perfect fantastic")
BLAME = _words("bad terrible awful boring horrible poor dull dreadful ugly weak disappointing unpleasant mediocre annoying")
DEGREES = ("", "", "", " very", " really", " quite", " truly", " so")
NEGATIONS = (" not", " never", " hardly")

TRUSTED = (
    "my landlord",
    "my sister",
    "my brother",
    "my mother",
    "my doctor",
    "my teacher",
    "the school",
    "the baker",
    "the library",
    "an old friend",
)
UNKNOWN = (
    "a stranger",
    "an unknown account",
    "a new account",
    "an unknown company",
    "a foreign agent",
    "someone online",
    "a hidden wallet",
    "an anonymous seller",
)
CITIES = _words(
    "Paris Berlin Rome Madrid Lisbon Athens Warsaw Moscow Oslo Stockholm Helsinki Vienna Dublin London Cairo Nairobi "
    "Beijing Tokyo Bangkok Havana Lima Santiago Ottawa Quito"
)

JOBS = _words("doctor teacher farmer painter sailor baker nurse pilot writer singer")
HOBBIES = _words("read swim dance sing cook paint run write sleep travel")
