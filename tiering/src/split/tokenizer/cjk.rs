//! Chinese, Japanese and Korean, which are written without spaces, or with spaces that say little.
//!
//! Each character starts one word at a position of its own: it and the next one where that is of these scripts too,
//! else it alone. A run of `n` characters is thus indexed as `n - 1` overlapping pairs and its last character, and any
//! part of it is found: two characters are one word to look up, more are a phrase of pairs, and one is the start of a
//! word. No dictionary decides what a word is, so no word is missed because it was not in one.

/// Han, kana, Hangul and Bopomofo, as blocks of Unicode; what is not alphanumeric in them is not asked for.
const RANGES: [(char, char); 17] = [
    ('\u{1100}', '\u{11FF}'),   // Hangul Jamo
    ('\u{3005}', '\u{3007}'),   // iteration mark, closing mark, zero
    ('\u{3031}', '\u{3035}'),   // kana repeat marks
    ('\u{3041}', '\u{309F}'),   // Hiragana
    ('\u{30A1}', '\u{30FF}'),   // Katakana
    ('\u{3105}', '\u{318E}'),   // Bopomofo, Hangul compatibility Jamo
    ('\u{31A0}', '\u{31BF}'),   // Bopomofo extended
    ('\u{31F0}', '\u{31FF}'),   // Katakana phonetic extensions
    ('\u{3400}', '\u{4DBF}'),   // Han, extension A
    ('\u{4E00}', '\u{9FFF}'),   // Han
    ('\u{A960}', '\u{A97F}'),   // Hangul Jamo extended A
    ('\u{AC00}', '\u{D7FF}'),   // Hangul syllables, Jamo extended B
    ('\u{F900}', '\u{FAFF}'),   // Han, compatibility
    ('\u{FF66}', '\u{FFDC}'),   // half-width Katakana and Hangul
    ('\u{1AFF0}', '\u{1B16F}'), // kana extensions and supplement
    ('\u{20000}', '\u{2FA1F}'), // Han, extensions B to F and I, compatibility supplement
    ('\u{30000}', '\u{323AF}'), // Han, extensions G and H
];

/// Whether a letter is of a script that is written without spaces between words.
#[inline]
pub(super) fn is_cjk(c: char) -> bool {
    // Nothing below is, which settles European scripts at once.
    c >= RANGES[0].0 && RANGES.iter().any(|(first, last)| (*first..=*last).contains(&c))
}
