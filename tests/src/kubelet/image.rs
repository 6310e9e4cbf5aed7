//! The images that there are: a table, because nothing can be pulled.

use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;

/// Where the image `portico` holds the program.
pub const PORTICO: &str = "/usr/local/bin/portico";

/// What an image says about running it. Its files are those of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// What runs, before the arguments.
    pub entrypoint: Vec<String>,
    /// Arguments when the container gives none.
    pub arguments: Vec<String>,
    /// What asks it to end.
    pub stop: Signal,
    /// Files that it has beyond those of the machine: where they are, and where it has them.
    pub files: Vec<(PathBuf, &'static str)>,
}

/// Finds an image by its name, whatever its registry, tag and digest are.
///
/// # Errors
/// With a message that names the images that there are.
pub fn find(reference: &str, portico: &Path) -> Result<Image, String> {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let image = |entrypoint: &[&str], arguments: &[&str]| Image {
        entrypoint: words(entrypoint),
        arguments: words(arguments),
        stop: Signal::SIGTERM,
        files: Vec::new(),
    };
    match name(reference) {
        "portico" => Ok(Image { files: vec![(portico.to_owned(), PORTICO)], ..image(&[PORTICO], &[]) }),
        // As the image that everyone uses: SIGQUIT lets requests end.
        "nginx" => Ok(Image { stop: Signal::SIGQUIT, ..image(&["nginx"], &["-g", "daemon off;"]) }),
        "curl" => Ok(image(&["curl"], &[])),
        "busybox" | "alpine" => Ok(image(&[], &["sh"])),
        other => Err(format!(
            "there is no image {other:?}; this kubelet has portico, nginx, busybox, curl and alpine, with any registry and tag"
        )),
    }
}

fn name(reference: &str) -> &str {
    let last = reference.rsplit('/').next().unwrap_or(reference);
    let tagless = last.split('@').next().unwrap_or(last);
    tagless.split(':').next().unwrap_or(tagless)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registries_tags_and_digests_do_not_matter() {
        for reference in
            ["nginx", "nginx:1.27", "docker.io/library/nginx", "localhost:5000/nginx:1@sha256:00", "nginx@sha256:00"]
        {
            assert_eq!(name(reference), "nginx", "{reference}");
        }
    }

    #[test]
    fn an_unknown_image_is_refused_with_those_that_there_are() {
        let said = find("redis:7", Path::new("/portico")).unwrap_err();
        assert!(said.contains("\"redis\"") && said.contains("nginx"), "{said}");
    }
}
