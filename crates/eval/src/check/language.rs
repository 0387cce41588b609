//! Which language a text is written in: by its letters where a script has one language, else by the function words
//! (or the letters) that languages of one script do not share. Made for whole answers, not for single words.

/// Common words of languages that share a script.
const LATIN: [(&str, &str); 20] = [
    (
        "en",
        "the of and to is that it for was with are this have you not be on as they from which we your will \
         a an i in my me he she his at by but had has can if there what when out",
    ),
    (
        "de",
        "der die und das ist nicht ein eine mit von sie auf für dem den es ich wir zu sich auch wird sind im",
    ),
    (
        "fr",
        "le les et est une des dans pour que qui pas sur avec nous vous ce il elle du au sont cette plus mais",
    ),
    (
        "es",
        "el los las es una por para con que del se su como más pero está este son muy y en lo nos al",
    ),
    (
        "pt",
        "os as é uma não com para do da em um por que mais se ao dos das está são você muito seu e",
    ),
    (
        "it",
        "il gli è una non che di per con sono della nel anche questo più ma si lo la i del le un ho",
    ),
    (
        "nl",
        "de het een en van is dat niet zijn op te voor met aan ook er maar bij wordt naar ik je we",
    ),
    (
        "sv",
        "och att det som en är på för av med inte den till har jag ett om vi kan du men från",
    ),
    (
        "da",
        "og at det er en på af for med ikke den til har jeg et om vi kan du men fra der blev",
    ),
    (
        "fi",
        "ja on ei se että hän oli ovat mutta kun niin myös tämä joka sen minä olen ole kuin voi sekä tai hyvin",
    ),
    (
        "vi",
        "và là của có không được một những cho trong với các này người đã để tôi bạn khi như về cũng rất",
    ),
    (
        "sw",
        "na ya wa kwa ni katika la za kama yake huu hii watu cha kuwa hiyo sana lakini au yangu mimi wewe pia",
    ),
    (
        "id",
        "yang dan di itu dengan untuk tidak ini dari dalam akan pada saya juga adalah ke karena kami bisa anda",
    ),
    (
        "tr",
        "ve bir bu için çok ile da olarak daha ne gibi ama değil kadar sonra var olan ben her o en",
    ),
    (
        "pl",
        "i w nie na się z jest to że do jak ale po co tak za od przez są dla który być oraz",
    ),
    (
        "ro",
        "și de în la cu este nu pe că o un care din pentru mai sunt se al ce fost sau am",
    ),
    (
        "cs",
        "a je se na v to že s z do o jsem ale jako by pro si tak které za jsou když také",
    ),
    (
        "hu",
        "a az és hogy nem egy is ez van meg de volt csak már el ha mint azt vagy még lesz nagyon",
    ),
    (
        "hr",
        "i je u se na da za su od s nije kao što ali koji iz ili bi to sam biti sve kako",
    ),
    (
        "tl",
        "ang ng sa na mga ay at ito siya ako hindi kung para ni si may kanyang niya ko po lang din",
    ),
];
const DEVANAGARI: [(&str, &str); 3] = [
    (
        "hi",
        "है हैं में की के का को से और यह था थी कि पर नहीं ने भी एक लिए हो तो वह कर हम",
    ),
    (
        "mr",
        "आहे आहेत आणि हे ते मध्ये या मी ची चा नाही तर होते होता होती व की एक आपण त्या हा ही केले आम्ही",
    ),
    (
        "ne",
        "छ छन् र हो मा पनि यो छैन गर्न भएको गरेको थियो लागि हुन्छ तर भने एक म हामी गर्ने यस छु तपाईं हुन्",
    ),
];
const CYRILLIC: [(&str, &str); 3] = [
    (
        "ru",
        "и в не что на с по это как он она они для из его но мы вы к я у был есть также",
    ),
    (
        "bg",
        "и на да се за от не са е като по това ще че със в но съм тя той ние има си бъде",
    ),
    (
        "uk",
        "і в не що на з та це як він вона вони для із його але ми ви до я у був є також",
    ),
];

/// Scripts and the ranges of their letters; one language each, or a choice that is made below.
const SCRIPTS: [(&str, &[(char, char)]); 18] = [
    (
        "latin",
        &[
            ('A', 'Z'),
            ('a', 'z'),
            ('\u{c0}', '\u{24f}'),
            ('\u{1e00}', '\u{1eff}'),
        ],
    ),
    ("cyrillic", &[('\u{400}', '\u{52f}')]),
    ("devanagari", &[('\u{900}', '\u{97f}')]),
    ("arabic", &[('\u{600}', '\u{6ff}'), ('\u{750}', '\u{77f}')]),
    ("han", &[('\u{4e00}', '\u{9fff}')]),
    ("ja", &[('\u{3040}', '\u{30ff}')]),
    ("ko", &[('\u{ac00}', '\u{d7a3}'), ('\u{1100}', '\u{11ff}')]),
    ("el", &[('\u{370}', '\u{3ff}')]),
    ("he", &[('\u{590}', '\u{5ff}')]),
    ("bn", &[('\u{980}', '\u{9ff}')]),
    ("pa", &[('\u{a00}', '\u{a7f}')]),
    ("gu", &[('\u{a80}', '\u{aff}')]),
    ("ta", &[('\u{b80}', '\u{bff}')]),
    ("te", &[('\u{c00}', '\u{c7f}')]),
    ("kn", &[('\u{c80}', '\u{cff}')]),
    ("ml", &[('\u{d00}', '\u{d7f}')]),
    ("th", &[('\u{e00}', '\u{e7f}')]),
    ("my", &[('\u{1000}', '\u{109f}')]),
];

/// Languages whose script is theirs alone, here, or that a table above tells apart.
pub fn is_known(code: &str) -> bool {
    let tables = LATIN.iter().chain(&DEVANAGARI).chain(&CYRILLIC);
    tables
        .map(|(language, _)| *language)
        .any(|language| language == code)
        || ["ar", "fa", "ur", "zh"].contains(&code)
        || SCRIPTS.iter().any(|(name, _)| *name == code && code.len() == 2)
}

/// The language of a text, as a code of ISO 639-1, by its most frequent script; none if nothing says which.
pub fn detect(text: &str) -> Option<&'static str> {
    let mut letters = [0usize; SCRIPTS.len()];
    for c in text.chars() {
        let script = SCRIPTS
            .iter()
            .position(|(_, ranges)| ranges.iter().any(|&(first, last)| first <= c && c <= last));
        if let Some(script) = script {
            letters[script] += 1;
        }
    }
    let count = |name: &str| {
        let found = SCRIPTS.iter().position(|(script, _)| *script == name);
        found.map_or(0, |script| letters[script])
    };
    let most = (0..SCRIPTS.len()).rev().max_by_key(|&script| letters[script])?;
    if letters[most] == 0 {
        return None;
    }
    match SCRIPTS[most].0 {
        "latin" => by_words(text, &LATIN),
        "devanagari" => by_words(text, &DEVANAGARI),
        "cyrillic" => by_words(text, &CYRILLIC),
        "arabic" => Some(by_arabic_letters(text)),
        // Japanese mixes both.
        "han" if count("ja") > 0 => Some("ja"),
        "han" => Some("zh"),
        language => Some(language),
    }
}

/// The language that most words of a text are common words of.
fn by_words(text: &str, languages: &[(&'static str, &str)]) -> Option<&'static str> {
    let text = text.to_lowercase();
    let mut counts = vec![0usize; languages.len()];
    // Marks of Indic scripts are no letters to the standard library: words end at spaces and punctuation.
    let gap = |c: char| c.is_whitespace() || c.is_ascii_punctuation() || "।“”„«»’‘–—…".contains(c);
    for word in text.split(gap).filter(|word| !word.is_empty()) {
        for (count, (_, words)) in counts.iter_mut().zip(languages) {
            *count += usize::from(words.split(' ').any(|common| common == word));
        }
    }
    let most = counts.iter().copied().max().filter(|&most| most > 0)?;
    let first = counts.iter().position(|&count| count == most)?;
    Some(languages[first].0)
}

/// Urdu and Persian write with letters that Arabic does not have, and Urdu with some more.
fn by_arabic_letters(text: &str) -> &'static str {
    let count = |letters: &str| text.chars().filter(|c| letters.contains(*c)).count();
    let urdu = count("\u{679}\u{688}\u{691}\u{6ba}\u{6d2}\u{6c1}\u{6be}");
    let persian = count("\u{67e}\u{686}\u{698}\u{6af}\u{6cc}\u{6a9}");
    let arabic = count("\u{64a}\u{643}\u{629}\u{649}\u{623}\u{625}");
    match (urdu * 2 > persian, urdu + persian > arabic) {
        (true, true) => "ur",
        (false, true) => "fa",
        _ => "ar",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sentence_of_each_language() {
        for (code, text) in [
            (
                "en",
                "The weather is nice today, and we are going to the sea with our friends.",
            ),
            (
                "en",
                "once upon a time there lived a little girl who had a red hat. she had a kind heart.",
            ),
            ("en", "my name is john. i am a software engineer with a passion."),
            ("en", "i am sorry, but i can't do that."),
            ("en", "I HAD A DREAM. I SAW A BIRD."),
            ("en", "THE WEATHER IS NICE TODAY, AND WE ARE GOING TO THE SEA."),
            (
                "de",
                "Das Wetter ist heute schön, und wir gehen mit unseren Freunden an den See.",
            ),
            (
                "fr",
                "Il fait beau aujourd'hui et nous allons à la mer avec les amis.",
            ),
            (
                "es",
                "Hoy hace buen tiempo y vamos al mar con los amigos de la escuela.",
            ),
            (
                "pt",
                "Hoje o tempo está bom e vamos ao mar com os amigos, mas não é longe.",
            ),
            (
                "it",
                "Oggi il tempo è bello e andiamo al mare con gli amici della scuola.",
            ),
            (
                "nl",
                "Het weer is vandaag mooi en we gaan met vrienden naar het strand.",
            ),
            (
                "sv",
                "Vädret är fint idag och vi åker till havet med våra vänner, inte långt.",
            ),
            (
                "fi",
                "Sää on tänään kaunis ja me menemme merelle, mutta se ei ole kaukana.",
            ),
            (
                "vi",
                "Hôm nay trời đẹp và chúng tôi đi biển với những người bạn của tôi.",
            ),
            (
                "sw",
                "Leo hali ya hewa ni nzuri na tunakwenda baharini kwa furaha pamoja na watu wengi.",
            ),
            (
                "id",
                "Cuaca hari ini bagus dan kami pergi ke laut dengan teman yang baik.",
            ),
            (
                "tr",
                "Bugün hava çok güzel ve biz bir arkadaş ile denize gidiyoruz.",
            ),
            (
                "pl",
                "Dzisiaj jest ładna pogoda i jedziemy nad morze z przyjaciółmi, to nie jest daleko.",
            ),
            (
                "ru",
                "Сегодня хорошая погода, и мы едем на море с друзьями, это не так далеко.",
            ),
            (
                "bg",
                "Днес времето е хубаво и ние отиваме на море с приятели, това не е далеч.",
            ),
            (
                "uk",
                "Сьогодні гарна погода, і ми їдемо на море з друзями, це не так далеко.",
            ),
            ("hi", "आज मौसम अच्छा है और हम दोस्तों के साथ समुद्र में जा रहे हैं।"),
            (
                "mr",
                "आज हवामान छान आहे आणि आम्ही मित्रांसोबत समुद्रावर जात आहोत, हे दूर नाही.",
            ),
            ("ne", "आज मौसम राम्रो छ र हामी साथीहरूसँग समुद्रमा जाँदैछौं, यो टाढा छैन।"),
            (
                "ar",
                "الطقس جميل اليوم ونحن ذاهبون إلى البحر مع الأصدقاء في المدينة.",
            ),
            ("fa", "امروز هوا خوب است و ما با دوستان به کنار دریا می‌رویم."),
            ("ur", "آج موسم اچھا ہے اور ہم دوستوں کے ساتھ سمندر پر جا رہے ہیں۔"),
            ("zh", "今天天气很好，我们和朋友去海边。"),
            ("ja", "今日は天気が良いので、友達と海に行きます。"),
            ("ko", "오늘은 날씨가 좋아서 친구들과 바다에 갑니다."),
            ("el", "Ο καιρός είναι καλός σήμερα."),
            ("bn", "আজ আবহাওয়া ভালো।"),
            ("pa", "ਅੱਜ ਮੌਸਮ ਚੰਗਾ ਹੈ।"),
            ("gu", "આજે હવામાન સારું છે."),
            ("ta", "இன்று வானிலை நன்றாக உள்ளது."),
            ("te", "ఈ రోజు వాతావరణం బాగుంది."),
            ("kn", "ಇಂದು ಹವಾಮಾನ ಚೆನ್ನಾಗಿದೆ."),
            ("th", "วันนี้อากาศดี"),
        ] {
            assert_eq!(detect(text), Some(code), "{text}");
            assert!(is_known(code), "{code}");
        }
        for text in ["", "123 + 456", "xyzzy"] {
            assert_eq!(detect(text), None, "{text}");
        }
        assert!(!is_known("latin") && !is_known("tlh"));
    }
}
