# ruff: noqa: RUF001
"""The words of answers, by what they do to the number that they stand beside: the tables of `numerals`."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# What multiplies a number: 2 dozen; glued to it, 10k; and beside a currency, $3m and $3 m.
SCALES = {"dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
SCALES |= {"quadrillion": 10**15, "lakh": 10**5, "lac": 10**5, "crore": 10**7}
GLUED_SCALES = {"k": 10**3, "K": 10**3, "M": 10**6, "mn": 10**6, "bn": 10**9, "tn": 10**12}
MONEY_SCALES = GLUED_SCALES | {"m": 10**6, "b": 10**9, "B": 10**9}

CURRENCIES = frozenset("$£€¥₹₩₽₱₫¢₦₺₴₪฿") | _words(
    "USD EUR GBP INR CAD AUD NZD SGD HKD RMB CNY JPY CHF SEK NOK DKK PLN MXN BRL ZAR KRW RM Rs kr"
)
DOLLARS_OF = _words("US HK A C R S NZ NT MX AU CA SG")

# Units that may stand on a number without a blank; other short words there are products of variables: 5ab, 5mgh.
LENGTHS = _words("nm μm um mm cm dm m km in inch inches ft foot feet yd yds yard yards mi mile miles")
UNITS = LENGTHS | _words(
    "g h s l L d D J W V N C F t μg mg kg kgs kms cms mps rs lb lbs oz ton tons ml mL cl cL dl dL gal qt pt cc fl "
    "sq cu μs ms sec secs min mins hr hrs day days wk wks yr yrs mo mos am pm mph kph kmh bpm rpm fps Hz kHz MHz "
    "GHz kJ MJ kW MW kWh mV kV mA kN Pa kPa MPa mol KB kB MB GB TB Mb Gb Mbps Gbps dB ha px pc pcs pts ea cal "
    "kcal deg rad ppm bps cent cents year hour week month unit units Ω kΩ м г ч с л т"
)
POWERED = LENGTHS | _words("s sec second seconds unit units meter meters metre metres")  # m^2, and m/s^2
BEFORE_UNITS = frozenset("'\u2019/*·") | _words("per sq cu square cubic degrees")  # of one letter, as m in sq. m
SHORT_WORDS = _words("a of in on at is by so as if up us we he it to me do go be an my no")  # behind a number, of prose
VARIABLES = _words("xy ab abc xyz ijk pqr")  # which look like words
ONE_LETTER = _words("a à é è")  # before a number no variable: articles, and "is" of other languages

# What makes a number another one, or none: on both sides of it, before it, behind it.
FUNCTIONS = _words(
    "sin cos tan cot sec csc sinh cosh tanh arcsin arccos arctan asin acos atan log ln lg exp sqrt cbrt root "
    "roots lcm gcd hcf mod modulo abs det floor ceil factorial choose plus minus divided multiplied or nor "
    "and/or alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho sigma tau "
    "upsilon phi chi psi omega"
)
FUNCTIONS_BEFORE = FUNCTIONS | _words(
    "max min half twice thrice double triple quadruple reciprocal inverse square cube over under times and per "
    "opposite negative divisible multiple multiples factors divisors digits mitad moitié hälfte metà metade helft "
    "tiers tercio terzo drittel viertel halb doppelt doppelte doble doppio dobro raíz raiz racine wurzel carré carrée "
    "mal fois veces vezes volte keer gånger krát razy "
    "cuadrado cuadrada quadrado quadrato quadratwurzel"
)
OF_VARIABLES = _words(  # before a variable: an equation that is still to be solved
    "sin cos tan cot sec csc sinh cosh tanh arcsin arccos arctan asin acos atan log ln lg exp sqrt cbrt frac dfrac "
    "tfrac cfrac binom abs absolute lfloor lceil lvert half twice thrice double triple root cube square third quarter "
    "plus minus times divided multiplied"
)
INFIX = _words(
    "plus minus times divided multiplied squared cubed mod modulo choose factorial increased decreased reduced over "
    "less"
)
LIMITS = _words(
    "close closer near mindestens höchstens wenigstens minstens hoogstens minst högst almeno az çok najmniej najwyżej "
    "above below beyond exceeds exceeding between instead short shy upwards from unequal más mais più mehr weniger dan "
    "über unter entre inférieur supérieur"
)
BOUNDS = _words("minimum maximum minimal maximal minimo massimo mínimo máximo minimaal maximaal")  # but a maximum of 5
EXTREMES = _words("least most best worst latest earliest")  # behind "at"
MULTIPLIERS = _words("half twice thrice double triple quadruple absolute")  # half as many as 18, absolute value of 18
FUNCTIONS_BEHIND = FUNCTIONS | _words("squared cubed doubled tripled halved raised repeating recurring")
FRACTIONS = _words(
    "half halves third thirds quarter quarters fourth fourths fifth fifths sixth sixths seventh sevenths eighth "
    "eighths ninth ninths tenth tenths eleventh elevenths twelfth twelfths sixteenth sixteenths twentieth "
    "twentieths hundredth hundredths thousandth thousandths millionth millionths"
)
SHARES = FRACTIONS | {"%", "percent"}  # of a variable: an equation that is still to be solved
BELOW_TWENTY = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
NUMBERS = frozenset((*BELOW_TWENTY, *TENS)) - {"", "one"}  # one may be a pronoun
CHANGING = FUNCTIONS_BEFORE | LIMITS | FRACTIONS | NUMBERS | {"one"}  # right before a number
TO_NUMBERS = _words("and by to plus minus times than point remainder below")
# Before a number: behind one in words and at most a noun (one student out of every 18), or behind a multiplier.
RATIOS_BEFORE = _words("in of out every")
COMPARED = _words("as of")
# Behind a number: with another one soon after (3 out of ten), or at the end (3 in ten, but 3 in one hour).
RATIOS = dict.fromkeys(("of", "out", "every", "over", "by", "to", "per"), "soon") | {"in": "last", "for": "last"}

# Scales whose value is not certain (20 grand, 3 mil, 2 cr) or of other languages, and what denies a number before it.
OTHER_SCALES = _words(
    "score scores tens gross grand mil bil tril cr crs tr quintillion sextillion myriad googol mio mia mrd mld "
    "mln millionen milliarde milliarden tausend hundert dutzend millón millones ciento cientos docena docenas "
    "mille millier milliers milliard milliards douzaine douzaines mila milione milioni miliardi miljoen miljard "
    "duizend tusen miljon miljoner milion miliony milionów tys tysiące tysięcy milyon milyar juta ribu triệu "
    "nghìn milhão milhões dúzia dúzias hundra değil नहीं से"
)
OTHER_SCALES_BEGIN = (
    *("тыс", "млн", "млрд", "миллион", "миллиард", "сот", "десят", "дюжин", "половин", "треть", "четверт"),
    *("만", "천", "억", "백", "십", "조원", "반", "成", "割", "ألف", "آلاف", "مليون", "مليار", "مئة", "مائة"),
    *("نصف", "ربع", "دزينة", "हज", "सौ", "लाख", "करोड", "दर्जन", "হাজার", "লাখ", "কোটি", "พัน", "หมื่น"),
    *("แสน", "ล้าน", "โหล", "ஆயிரம்", "אלף", "מיליון", "חצי"),
)
OTHER_SCALES_HOLD = (
    *("分之", "以上", "以下", "以内", "左右", "不到", "未満", "的平方", "的立方", "倍数", "ではない"),
    *("아니다", "보다", "이상", "이하", "미만", "초과", *"百千万萬亿億兆十打半又多余餘强弱来來几幾"),
)

# Of dates, on both sides of a number; as they are written, for `may` and `march` are verbs.
MONTHS = _words(
    "January February March April May June July August September October November December "
    "Jan Feb Mar Apr Jun Jul Aug Sep Sept Oct Nov Dec"
)

# Before a number: what denies it, a negative sign, and the verbs that begin the phrase that it is in.
DENIALS = _words(
    "not never neither nor none cannot t hardly unlikely impossible except excluding without besides but than unless "
    "opposed nicht kein keine nie niemals ohne außer statt als wie pas jamais sans sauf moins nunca excepto menos que "
    "meno não non niet inte än bukan dari không hơn değil niż"
)
DENYING = frozenset("不非负負没沒")
# What a word of another script than Latin must end in, for that which follows it to be stated.
STATING = tuple(_words("是 为 為 等于 等於 共 有 约 は 은 는 답 ответ равно это всего итого около उत्तर है هو คือ"))
MINUS = _words("minus negative neg минус")
VERBS = _words("is are was were be been equals has have had gets got makes costs needs gives becomes es est ist sind")
BEFORE_MINUS = VERBS | _words("to of at a the")
CONNECTIVES = _words("of the a an to by past number de di von van à")  # the square root of the number 16
