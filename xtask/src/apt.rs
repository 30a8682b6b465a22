//! Where this machine gets its Debian packages from.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// Suites that Debian itself publishes, by code name and by role.
const SUITES: [&str; 11] = [
    "bullseye",
    "bookworm",
    "trixie",
    "forky",
    "duke",
    "sid",
    "oldoldstable",
    "oldstable",
    "stable",
    "testing",
    "unstable",
];

/// The Debian archive named first in the apt sources under `etc` (`/etc/apt`).
pub fn debian_archive(etc: &Path) -> Result<String> {
    let mut files = vec![etc.join("sources.list")];
    if let Ok(entries) = fs::read_dir(etc.join("sources.list.d")) {
        let mut parts: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        parts.sort();
        files.extend(parts);
    }
    files
        .iter()
        .find_map(|file| {
            let text = fs::read_to_string(file).ok()?;
            match file.extension()?.to_str()? {
                "list" => archive_in_list(&text),
                "sources" => archive_in_sources(&text),
                _ => None,
            }
        })
        .context("this machine's apt sources name no Debian archive")
}

/// One-line style: `deb [options] uri suite component...`.
fn archive_in_list(text: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let line = line.split('#').next()?.trim();
        let rest = line
            .strip_prefix("deb")?
            .strip_prefix([' ', '\t'])?
            .trim_start();
        let (options, entry) = match rest.strip_prefix('[') {
            Some(rest) => rest.split_once(']')?,
            None => ("", rest),
        };
        let mut words = entry.split_whitespace();
        let (uri, suite) = (words.next()?, words.next()?);
        is_debian(uri, [suite], words, options).then(|| uri.to_owned())
    })
}

/// deb822 style: paragraphs of `Field: value`, continued on lines that begin with a blank.
fn archive_in_sources(text: &str) -> Option<String> {
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    lines
        .split(|line| line.trim().is_empty())
        .find_map(|paragraph| {
            let field = |name: &str| {
                let is_field = |line: &&str| {
                    line.split_once(':')
                        .is_some_and(|(key, _)| key.trim_end().eq_ignore_ascii_case(name))
                };
                let first = paragraph
                    .iter()
                    .position(|line| !line.starts_with([' ', '\t']) && is_field(line));
                let Some(first) = first else {
                    return String::new();
                };
                let continued = paragraph[first + 1..]
                    .iter()
                    .take_while(|line| line.starts_with([' ', '\t']));
                let value = paragraph[first]
                    .split_once(':')
                    .map_or("", |(_, value)| value);
                continued.fold(value.to_owned(), |value, line| value + line)
            };
            if field("Enabled").trim().eq_ignore_ascii_case("no")
                || !field("Types").split_whitespace().any(|kind| kind == "deb")
            {
                return None;
            }
            let uri = field("URIs").split_whitespace().next()?.to_owned();
            let (suites, components) = (field("Suites"), field("Components"));
            is_debian(
                &uri,
                suites.split_whitespace(),
                components.split_whitespace(),
                &field("Signed-By"),
            )
            .then_some(uri)
        })
}

fn is_debian<'a>(
    uri: &str,
    suites: impl IntoIterator<Item = &'a str>,
    components: impl IntoIterator<Item = &'a str>,
    signed_by: &str,
) -> bool {
    let of_debian = |suite: &str| {
        let base = ["-updates", "-backports", "-proposed-updates"]
            .iter()
            .find_map(|end| suite.strip_suffix(end))
            .unwrap_or(suite);
        // the security archive has the same keyring but holds neither trixie nor its backports
        let security = suite.ends_with("-security") || suite.contains('/');
        !security && (SUITES.contains(&base) || signed_by.contains("debian-archive"))
    };
    !uri.starts_with("cdrom:")
        && components.into_iter().any(|component| component == "main")
        && suites.into_iter().any(of_debian)
}

#[cfg(test)]
mod tests {
    use super::{archive_in_list, archive_in_sources};

    #[test]
    fn list_takes_the_first_debian_entry() {
        let text = "\
            # deb http://commented.example/debian bookworm main\n\
            deb cdrom:[Debian 12]/ bookworm main\n\
            deb-src http://source.example/debian bookworm main\n\
            deb http://security.example/debian-security bookworm-security main\n\
            deb [ arch=amd64 signed-by=/k.gpg ] http://mirror.example/debian bookworm main contrib # ours\n\
            deb http://second.example/debian bookworm-updates main\n";
        assert_eq!(
            archive_in_list(text).as_deref(),
            Some("http://mirror.example/debian")
        );
    }

    #[test]
    fn list_of_another_distribution_names_none() {
        let text = "deb http://archive.example/ubuntu noble main universe\n\
                    deb [signed-by=/k.gpg] http://tool.example/apt stable tool\n\
                    debian http://odd.example bookworm main\n\
                    deb [broken http://odd.example bookworm main\n";
        assert_eq!(archive_in_list(text), None);
    }

    #[test]
    fn list_knows_debian_by_its_keyring() {
        let text = "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://m.example/d newname main";
        assert_eq!(archive_in_list(text).as_deref(), Some("http://m.example/d"));
    }

    #[test]
    fn sources_skips_disabled_security_and_foreign_paragraphs() {
        let text = "\
Types: deb
URIs: http://off.example/debian
Suites: bookworm
Components: main
Enabled: no

Types: deb
URIs: http://security.example/debian-security
Suites: bookworm-security
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://foreign.example/apt
Suites: nodistro
Components: main

types: deb deb-src
# a comment between two fields
uris: http://mirror.example/debian http://other.example/debian
Suites:
 bookworm
 bookworm-updates
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 URIs: not a field
 -----END PGP PUBLIC KEY BLOCK-----
";
        assert_eq!(
            archive_in_sources(text).as_deref(),
            Some("http://mirror.example/debian")
        );
    }

    #[test]
    fn sources_keeps_a_mirror_list() {
        let text = "Types: deb\nURIs: mirror+file:/etc/apt/mirrors/debian.list\nSuites: trixie trixie-backports\nComponents: main\n";
        assert_eq!(
            archive_in_sources(text).as_deref(),
            Some("mirror+file:/etc/apt/mirrors/debian.list")
        );
    }

    #[test]
    fn empty_text_names_none() {
        assert_eq!(archive_in_list(""), None);
        assert_eq!(archive_in_sources(""), None);
        assert_eq!(archive_in_sources("Types: deb\n"), None);
    }
}
