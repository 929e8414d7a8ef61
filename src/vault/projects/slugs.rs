//! The slugs that are tried for a name, when none is given.

use crate::crypto::tokens::make_number;
use crate::domain::names::{ProjectSlug, SLUG_BYTES_MAX, StageSlug};
use crate::storage;
use crate::vault::no_random;

/// The slugs to try for a project's name: its letters and digits, then 4 random digits (16 tries), then 6 (16 tries).
pub(super) fn project_slugs(name: &str) -> Result<Vec<ProjectSlug>, storage::Error> {
    let mut base: String = name
        .to_lowercase()
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .collect();
    if base.is_empty() {
        base.push_str("project");
    }
    let mut slugs = Vec::new();
    for digits in [4, 6] {
        for _ in 0..16 {
            slugs.push(suffixed(&base, digits)?);
        }
    }
    Ok(slugs)
}

/// The slugs to try for a stage's name: its words with `-` between them, then with 2 random digits, then with 4.
pub(super) fn stage_slugs(name: &str) -> Result<Vec<StageSlug>, storage::Error> {
    let lower = name.to_lowercase();
    let words: Vec<&str> = lower
        .split(|character: char| !character.is_ascii_alphanumeric())
        .filter(|word| !word.is_empty())
        .collect();
    let mut base = words.join("-");
    base.truncate(SLUG_BYTES_MAX);
    let base = match base.trim_end_matches('-') {
        "" => "stage",
        trimmed => trimmed,
    };
    let mut slugs = vec![parse_slug(base)?];
    for digits in [2, 4] {
        for _ in 0..16 {
            slugs.push(suffixed(base, digits)?);
        }
    }
    Ok(slugs)
}

/// A slug with that many random digits behind it, cut so that it fits.
fn suffixed<T: std::str::FromStr>(base: &str, digits: u32) -> Result<T, storage::Error> {
    let width = digits as usize;
    let number = make_number(10_u32.pow(digits)).map_err(no_random)?;
    let room = SLUG_BYTES_MAX - 1 - width;
    let base = base.get(..room).unwrap_or(base).trim_end_matches('-');
    parse_slug(&format!("{base}-{number:0width$}"))
}

fn parse_slug<T: std::str::FromStr>(text: &str) -> Result<T, storage::Error> {
    text.parse().map_err(|_| storage::Error::Unexpected {
        what: format!("no slug can be made of {text:?}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_project_slug_is_the_letters_and_digits_of_its_name_and_a_number() {
        let slugs = project_slugs("My Shop: 2nd edition!").unwrap();
        assert_eq!(slugs.len(), 32);
        assert!(slugs[0].as_str().starts_with("myshop2ndedition-"));
        assert_eq!(slugs[0].as_str().len(), "myshop2ndedition-".len() + 4);
        assert_eq!(slugs[31].as_str().len(), "myshop2ndedition-".len() + 6);
        assert!(
            project_slugs("§§").unwrap()[0]
                .as_str()
                .starts_with("project-")
        );
        for slug in project_slugs(&"a".repeat(120)).unwrap() {
            assert!(slug.as_str().len() <= SLUG_BYTES_MAX);
        }
    }

    #[test]
    fn a_stage_slug_has_its_words_with_dashes_between_and_a_number_only_on_a_clash() {
        let slugs = stage_slugs("  QA / Europe ").unwrap();
        assert_eq!(slugs[0].as_str(), "qa-europe");
        assert_eq!(slugs[1].as_str().len(), "qa-europe-00".len());
        assert_eq!(stage_slugs("ü").unwrap()[0].as_str(), "stage");
        let long = format!("{} b", "a".repeat(47));
        assert_eq!(stage_slugs(&long).unwrap()[0].as_str(), "a".repeat(47));
    }
}
