//! The files of a directory with their last good content.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};

use super::parse::{Parsed, parse};
use crate::{
    problem::{ByObject, Problem},
    watch::object::{Object, ObjectKey},
};

/// Folders below folders that are followed; a loop of symbolic links ends here at the latest.
const MAX_DEPTH: usize = 16;

/// A directory as it was last seen.
#[derive(Debug)]
pub struct Files {
    directory: PathBuf,
    files: BTreeMap<PathBuf, File>,
    /// When each object was first seen: its creationTimestamp unless it has one, so that "the older" means something.
    first_seen: BTreeMap<ObjectKey, Time>,
    /// The directory itself, or one below it, could not be read.
    unreadable: BTreeMap<PathBuf, String>,
}

#[derive(Debug)]
struct File {
    stamp: Option<Stamp>,
    /// The last content that parsed; its objects are trimmed and stamped already, so that looking again shares them.
    good: Parsed,
    error: Option<String>,
}

/// Changes whenever the content may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    length: u64,
    inode: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// What all files say together.
#[derive(Debug, Default)]
pub struct Merged {
    /// The objects, each once.
    pub objects: BTreeMap<ObjectKey, Object>,
    /// Objects that stand in several files.
    pub duplicates: ByObject,
    /// Files that could not be read.
    pub broken: Vec<Problem>,
    /// How many objects of kinds that are not read there are, by kind.
    pub others: BTreeMap<String, u64>,
}

// === impl Files ===

impl Files {
    /// A directory that was not looked at yet.
    pub fn new(directory: PathBuf) -> Self {
        Self { directory, files: BTreeMap::new(), first_seen: BTreeMap::new(), unreadable: BTreeMap::new() }
    }

    /// Looks at the directory and reads what changed. True if anything did. New objects are stamped with `now`.
    ///
    /// A file that breaks keeps its last good content; a directory that cannot be read keeps all of it, because an unmounted
    /// volume must not look like a deletion.
    pub fn scan(&mut self, now: Timestamp) -> bool {
        let mut seen = BTreeSet::new();
        let mut unreadable = BTreeMap::new();
        let root = self.directory.clone();
        walk(&root, MAX_DEPTH, &mut seen, &mut unreadable);
        let mut changed = unreadable != self.unreadable;
        self.unreadable = unreadable;
        let gone =
            |path: &PathBuf| !seen.contains(path) && !self.unreadable.keys().any(|parent| path.starts_with(parent));
        let gone: Vec<PathBuf> = self.files.keys().filter(|path| gone(path)).cloned().collect();
        for path in gone {
            self.files.remove(&path);
            changed = true;
        }
        for path in seen {
            changed |= self.read(path, now);
        }
        changed
    }

    fn read(&mut self, path: PathBuf, now: Timestamp) -> bool {
        let known = self.files.get(&path);
        let stamp = fs::metadata(&path).map(|metadata| Stamp::of(&metadata));
        if let (Ok(stamp), Some(File { stamp: Some(before), .. })) = (&stamp, known)
            && stamp == before
        {
            return false;
        }
        let content = stamp.and_then(|stamp| fs::read(&path).map(|content| (stamp, content)));
        let (stamp, result) = match content {
            Ok((stamp, content)) => (Some(stamp), parse(&content).map_err(|error| error.to_string())),
            // Removed between listing and reading: the next look will say so.
            Err(error) if error.kind() == io::ErrorKind::NotFound && known.is_none() => return false,
            Err(error) => (None, Err(format!("cannot be read: {error}"))),
        };
        let before = self.files.remove(&path);
        let was_error = before.as_ref().and_then(|file| file.error.clone());
        let file = match result {
            Ok(mut good) => {
                good.objects = good.objects.into_iter().map(|(line, object)| (line, self.admit(object, now))).collect();
                File { stamp, good, error: None }
            }
            Err(error) => File { stamp, good: before.map(|file| file.good).unwrap_or_default(), error: Some(error) },
        };
        let changed = file.error.is_none() || file.error != was_error;
        self.files.insert(path, file);
        changed
    }

    /// Completes the metadata of an object that was just read, and drops what nobody reads.
    fn admit(&mut self, object: Object, now: Timestamp) -> Object {
        let key = object.key();
        let mut object = object.trimmed();
        let metadata = object.metadata_mut();
        if key.kind.is_namespaced() {
            metadata.namespace = Some(key.namespace.to_string());
        }
        if metadata.creation_timestamp.is_none() {
            metadata.creation_timestamp = Some(self.first_seen.entry(key).or_insert(Time(now)).clone());
        }
        object
    }

    /// What the files say, as of the last scan.
    pub fn merge(&mut self) -> Merged {
        let mut merged = Merged::default();
        let mut from: BTreeMap<ObjectKey, (&Path, u64)> = BTreeMap::new();
        for (path, file) in &self.files {
            let path = path.strip_prefix(&self.directory).unwrap_or(path);
            if let Some(error) = &file.error {
                let kept = if file.good.objects.is_empty() { "" } else { "; its last good content is still served" };
                merged.broken.push(Problem::new("BROKEN_FILE", format!("{}: {error}{kept}", path.display())));
            }
            for (line, object) in &file.good.objects {
                let key = object.key();
                if let Some((first, first_line)) = from.get(&key) {
                    let message = format!(
                        "{}:{line} defines it again; {}:{first_line} is served",
                        path.display(),
                        first.display()
                    );
                    merged.duplicates.entry(key).or_default().push(Problem::new("DUPLICATE_OBJECT", message));
                    continue;
                }
                from.insert(key.clone(), (path, *line));
                merged.objects.insert(key, object.clone());
            }
            for (kind, count) in &file.good.others {
                *merged.others.entry(kind.clone()).or_default() += count;
            }
        }
        // What is gone and comes back is new.
        self.first_seen.retain(|key, _| merged.objects.contains_key(key));
        for (path, error) in &self.unreadable {
            let message = format!("{}: {error}; its last good content is still served", path.display());
            merged.broken.push(Problem::new("UNREADABLE_DIRECTORY", message));
        }
        merged
    }
}

/// Finds the manifests below a folder. Hidden entries are skipped: among them are the `..data` folders of mounted
/// volumes, whose files are seen through the links beside them.
fn walk(folder: &Path, depth: usize, seen: &mut BTreeSet<PathBuf>, unreadable: &mut BTreeMap<PathBuf, String>) {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) => {
            unreadable.insert(folder.to_owned(), format!("cannot be listed: {error}"));
            return;
        }
    };
    for entry in entries {
        let path = match entry {
            Ok(entry) => entry.path(),
            Err(error) => {
                unreadable.insert(folder.to_owned(), format!("cannot be listed: {error}"));
                return;
            }
        };
        let hidden = path.file_name().is_none_or(|name| name.to_string_lossy().starts_with('.'));
        if hidden {
            continue;
        }
        // Follows links, which is what mounted volumes consist of.
        let is_folder = fs::metadata(&path).is_ok_and(|metadata| metadata.is_dir());
        if is_folder && depth > 0 {
            walk(&path, depth - 1, seen, unreadable);
        } else if !is_folder
            && path.extension().is_some_and(|extension| matches!(extension.to_str(), Some("yaml" | "yml" | "json")))
        {
            seen.insert(path);
        }
    }
}

// === impl Stamp ===

impl Stamp {
    fn of(metadata: &fs::Metadata) -> Self {
        Self {
            length: metadata.len(),
            inode: metadata.ino(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

#[cfg(test)]
mod tests;
