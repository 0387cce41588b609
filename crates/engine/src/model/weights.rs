//! Quantised matrices in huge pages of our own. A step reads them all, and from the page cache, with its pages of 4 KB, a core
//! reads a fifth slower.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::graph_guard::StoredTensor;
use crate::error::{Error, Result};
use crate::huge_pages::HugePages;

/// Matrices begin at a cache line.
const ALIGNMENT: usize = 64;

/// Some tensors of a model, read once for all engines of the process that have it open.
pub(crate) struct Weights {
    source: Source,
    starts: Vec<usize>,
    memory: HugePages,
}

/// Which bytes these are: tensors, and the files that they came from as they were then.
#[derive(PartialEq, Eq)]
struct Source {
    tensors: Vec<StoredTensor>,
    files: BTreeMap<String, FileState>,
}

#[derive(PartialEq, Eq)]
struct FileState {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl Source {
    fn new(folder: &Path, tensors: &[StoredTensor]) -> Result<Self> {
        let mut files = BTreeMap::new();
        for tensor in tensors {
            if files.contains_key(&tensor.file) {
                continue;
            }
            let found =
                fs::metadata(folder.join(&tensor.file)).map_err(|error| unreadable(tensor, &error))?;
            let state = FileState {
                device: found.dev(),
                inode: found.ino(),
                size: found.size(),
                modified: (found.mtime(), found.mtime_nsec()),
            };
            files.insert(tensor.file.clone(), state);
        }
        Ok(Self {
            tensors: tensors.to_vec(),
            files,
        })
    }
}

impl Weights {
    /// The tensors, which lie inside their files; those that another engine has read, if it is still there.
    ///
    /// # Errors
    /// [`Error::Model`] if a file cannot be read, or if there is no memory.
    pub(crate) fn shared(folder: &Path, tensors: &[StoredTensor]) -> Result<Arc<Self>> {
        static OPEN: Mutex<Vec<Weak<Weights>>> = Mutex::new(Vec::new());
        let source = Source::new(folder, tensors)?;
        // Held while reading: a second engine of the same model waits for the first one's.
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|weights| weights.strong_count() > 0);
        let mut others = open.iter().filter_map(Weak::upgrade);
        if let Some(weights) = others.find(|weights| weights.source == source) {
            return Ok(weights);
        }
        let weights = Arc::new(Self::read(folder, source)?);
        open.push(Arc::downgrade(&weights));
        Ok(weights)
    }

    fn read(folder: &Path, source: Source) -> Result<Self> {
        let mut starts = Vec::with_capacity(source.tensors.len());
        let mut end = 0usize;
        for tensor in &source.tensors {
            starts.push(end);
            end = usize::try_from(tensor.bytes)
                .ok()
                .and_then(|bytes| end.checked_add(bytes)?.checked_next_multiple_of(ALIGNMENT))
                .ok_or_else(|| Error::Model("weights: expected what fits into memory, found more".into()))?;
        }
        // Ranges may overlap: a graph of a few bytes could ask for any amount of memory.
        let bytes = |total: u64, size: u64| total.saturating_add(size);
        let found = source.tensors.iter().map(|tensor| tensor.bytes).fold(0, bytes);
        let most = source.files.values().map(|file| file.size).fold(0, bytes);
        if found > most {
            return Err(Error::Model(format!(
                "weights: expected matrices of at most the {most} bytes of their files, found {found}"
            )));
        }
        let mut memory = HugePages::new(end)
            .map_err(|error| Error::Model(format!("weights: no memory for {end} bytes: {error}")))?;
        let mut files: BTreeMap<&str, File> = BTreeMap::new();
        for (tensor, &start) in source.tensors.iter().zip(&starts) {
            let file = match files.get(tensor.file.as_str()) {
                Some(file) => file,
                None => {
                    let file =
                        File::open(folder.join(&tensor.file)).map_err(|error| unreadable(tensor, &error))?;
                    files.entry(&tensor.file).or_insert(file)
                }
            };
            let to = &mut memory.as_mut_slice()[start..start + tensor.bytes as usize];
            file.read_exact_at(to, tensor.offset)
                .map_err(|error| unreadable(tensor, &error))?;
        }
        Ok(Self {
            source,
            starts,
            memory,
        })
    }

    /// Name, dimensions and address of each tensor. What lies there stays as it is while `self` lives.
    pub(crate) fn tensors(&self) -> impl Iterator<Item = (&str, &[i64], NonNull<u8>)> {
        let tensors = self.source.tensors.iter().zip(&self.starts);
        tensors.map(|(tensor, &start)| (&*tensor.name, &*tensor.dims, self.memory.at(start)))
    }
}

fn unreadable(tensor: &StoredTensor, error: &std::io::Error) -> Error {
    Error::Model(format!("{}: {}: {error}", tensor.file, tensor.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matrices_take_no_more_memory_than_their_files() {
        let folder = std::env::temp_dir().join(format!("rrpc-matrices-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("data"), (0..100).collect::<Vec<u8>>()).unwrap();
        let tensor = |name: &str, offset: u64, bytes: u64| StoredTensor {
            name: name.into(),
            dims: vec![bytes as i64],
            file: "data".into(),
            offset,
            bytes,
        };
        let read = |tensors: &[StoredTensor]| Weights::shared(&folder, tensors);
        let weights = read(&[tensor("a", 60, 40), tensor("b", 1, 60)]).unwrap();
        let found: Vec<_> = weights.tensors().map(|(name, dims, _)| (name, dims[0])).collect();
        assert_eq!(found, [("a", 40), ("b", 60)]);
        assert_eq!(weights.memory.as_slice()[..40], (60..100).collect::<Vec<u8>>());
        assert_eq!(weights.memory.as_slice()[64..124], (1..61).collect::<Vec<u8>>());
        for (tensors, expected) in [
            (
                vec![tensor("a", 0, 60), tensor("b", 0, 60)],
                "at most the 100 bytes of their files, found 120",
            ),
            (vec![tensor("a", 90, 20)], "data: a: "),
        ] {
            let error = read(&tensors).err().unwrap().to_string();
            assert!(error.contains(expected), "{error}");
        }
        fs::remove_dir_all(&folder).unwrap();
    }
}
