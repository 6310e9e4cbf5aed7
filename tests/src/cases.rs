//! Cases as data: what Kubernetes and others promise, one YAML document for each promise, and a test for each of them.
//!
//! A [`Suite`] gives the documents of one directory a meaning. To add one: a module with a `SUITE`, and its name in
//! [`SUITES`].

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use serde::de::DeserializeOwned;
use serde_json::Value;

pub mod dns;
pub mod ipam;
pub mod services;

/// Every suite there is.
pub const SUITES: [Suite; 3] = [dns::SUITE, ipam::SUITE, services::SUITE];

/// What the documents of one directory mean.
#[derive(Clone, Copy, Debug)]
pub struct Suite {
    /// The directory's name, which begins the names of its tests.
    pub name: &'static str,
    /// Makes the tests of all documents of the directory, or says which document is wrong.
    pub tests: fn(Vec<Document>) -> Result<Vec<Test>, String>,
}

/// One YAML document.
#[derive(Clone, Debug)]
pub struct Document {
    /// The file it is in, without its folder.
    pub file: String,
    /// Its `name`, unique within a suite.
    pub name: String,
    /// All of it.
    pub value: Value,
}

/// One promise to be tested.
pub struct Test {
    /// Name of the case.
    pub name: String,
    /// Says in an error what differs.
    pub run: Box<dyn FnOnce() -> Result<(), String> + Send>,
}

/// The directory whose cases are run: `$PORTICO_CASES`, else `../shared/cases` beside the repository if there is one,
/// else the repository's own.
pub fn directory() -> PathBuf {
    let crate_directory = Path::new(env!("CARGO_MANIFEST_DIR"));
    let beside = crate_directory.join("../../shared/cases");
    match std::env::var_os("PORTICO_CASES") {
        Some(given) => PathBuf::from(given),
        None if beside.is_dir() => beside,
        None => crate_directory.join("cases"),
    }
}

/// The tests of each suite that has a folder in `directory`.
///
/// # Errors
/// A sentence, if there is no case at all, or a file or document is not what the suite expects.
pub fn load(directory: &Path) -> Result<Vec<(&'static str, Test)>, String> {
    let mut tests = Vec::new();
    for suite in SUITES {
        let folder = directory.join(suite.name);
        if !folder.is_dir() {
            continue;
        }
        let found = (suite.tests)(documents(&folder)?).map_err(|reason| format!("{}: {reason}", folder.display()))?;
        if found.is_empty() {
            return Err(format!("{}: there is no case; every suite has some", folder.display()));
        }
        tests.extend(found.into_iter().map(|test| (suite.name, test)));
    }
    if tests.is_empty() {
        let suites: Vec<_> = SUITES.iter().map(|suite| suite.name).collect();
        return Err(format!("{}: there is none of the folders {}", directory.display(), suites.join(", ")));
    }
    Ok(tests)
}

/// The documents of every `.yaml` file of a folder, in order of the files' names.
fn documents(folder: &Path) -> Result<Vec<Document>, String> {
    let entries = fs::read_dir(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let mut files: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml"));
    files.sort();
    let (mut documents, mut names) = (Vec::new(), BTreeSet::new());
    for path in files {
        let failed = |reason: String| format!("{}: {reason}", path.display());
        let text = fs::read_to_string(&path).map_err(|error| failed(error.to_string()))?;
        let options = serde_saphyr::options! { strict_booleans: true };
        let values: Vec<Value> =
            serde_saphyr::from_multiple_with_options(&text, options).map_err(|error| failed(error.to_string()))?;
        for value in values.into_iter().filter(|value| !value.is_null()) {
            let Some(name) = value["name"].as_str().map(str::to_owned) else {
                return Err(failed("a document has no name".to_owned()));
            };
            if !names.insert(name.clone()) {
                return Err(failed(format!("there are two documents of the name {name}")));
            }
            let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            documents.push(Document { file, name, value });
        }
    }
    Ok(documents)
}

// === impl Document ===

impl Document {
    /// The document as a type of the suite.
    ///
    /// # Errors
    /// A sentence that names the file, the document, and what is wrong with it.
    pub fn typed<T: DeserializeOwned>(&self) -> Result<T, String> {
        serde_json::from_value(self.value.clone()).map_err(|error| format!("{}: {}: {error}", self.file, self.name))
    }
}
