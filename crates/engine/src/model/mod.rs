//! A model folder: manifest, graph and weights, tokenizer, chat template. Hostile until checked.

mod graph_guard;
mod manifest;
mod weights;

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use manifest::{Dimensions, Flavour, Manifest, Tokens};
pub(crate) use weights::Weights;

use crate::error::{Error, Result};
use crate::text::{ChatTemplate, Tokenizer};

/// The graph's file name in a model folder.
pub(crate) const GRAPH_FILE: &str = "model.onnx";
const MANIFEST_FILE: &str = "manifest.json";
const TOKENIZER_FILE: &str = "tokenizer.json";
const TEMPLATE_FILE: &str = "chat_template.jinja";
/// A manifest, a template or a tokenizer beyond this is not one (the largest tokenizers have about 20 MB).
const TEXT_FILE_LIMIT: u64 = 256 << 20;

/// A checked model folder.
pub struct Model {
    folder: PathBuf,
    manifest: Manifest,
    tokenizer: Option<Tokenizer>,
    template: Option<ChatTemplate>,
    matrices: Vec<graph_guard::StoredTensor>,
}

impl Model {
    /// Reads and checks a model folder. `verify_weights` also compares the hash of every file with
    /// the manifest's; without it only that of the small files, and the size of all.
    ///
    /// # Errors
    /// [`Error::Model`]: a file is missing or is not what the manifest says, the manifest is of
    /// another version, or the graph refers to files outside the folder.
    pub fn open(folder: &Path, verify_weights: bool) -> Result<Self> {
        let folder = fs::canonicalize(folder)
            .map_err(|error| Error::Model(format!("folder {}: {error}", folder.display())))?;
        let manifest = Manifest::parse(&read_file(&folder, MANIFEST_FILE)?)?;
        manifest.check_files(&folder, verify_weights)?;
        let matrices = graph_guard::check(&read_file(&folder, GRAPH_FILE)?, &folder, &manifest)?;

        let tokenizer = match manifest.has_file(TOKENIZER_FILE) {
            true => Some(Tokenizer::from_json(&read_file(&folder, TOKENIZER_FILE)?)?),
            false => None,
        };
        let template = match manifest.has_file(TEMPLATE_FILE) {
            true => {
                let source = String::from_utf8(read_file(&folder, TEMPLATE_FILE)?).map_err(|_| {
                    Error::Model(format!("{TEMPLATE_FILE}: expected UTF-8, found other bytes"))
                })?;
                let text_of = |id: Option<u32>| {
                    let tokenizer = tokenizer.as_ref()?;
                    tokenizer.token_text(id?).ok()
                };
                let bos = text_of(manifest.tokens.bos);
                let eos = text_of(manifest.tokens.eos);
                Some(ChatTemplate::new(&source, bos.as_deref(), eos.as_deref())?)
            }
            false => None,
        };
        Ok(Self {
            folder,
            manifest,
            tokenizer,
            template,
            matrices,
        })
    }

    /// What the exporter wrote about the model.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// [`Error::Text`] if the model came without one and takes token ids only.
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        self.tokenizer.as_ref().ok_or_else(|| {
            Error::Text("the model folder has no tokenizer.json: it takes token ids only".into())
        })
    }

    /// The chat template.
    ///
    /// # Errors
    /// [`Error::Template`] if the model came without one.
    pub fn template(&self) -> Result<&ChatTemplate> {
        self.template.as_ref().ok_or_else(|| {
            Error::Template("the model folder has no chat_template.jinja: it takes raw text only".into())
        })
    }

    /// The matrices that our own operators multiply with, in memory of our own.
    ///
    /// # Errors
    /// [`Error::Model`] if a file cannot be read, or if there is no memory.
    pub(crate) fn read_matrices(&self) -> Result<Option<Arc<Weights>>> {
        match self.matrices.is_empty() {
            true => Ok(None),
            false => Weights::shared(&self.folder, &self.matrices).map(Some),
        }
    }

    pub(crate) fn graph_path(&self) -> PathBuf {
        self.folder.join(GRAPH_FILE)
    }
}

fn read_file(folder: &Path, name: &str) -> Result<Vec<u8>> {
    let path = folder.join(name);
    let describe = |error: std::io::Error| Error::Model(format!("{}: {error}", path.display()));
    file_size(&path)?;
    let mut bytes = Vec::new();
    let file = fs::File::open(&path).map_err(describe)?;
    // One byte more than is allowed says that there are more.
    file.take(TEXT_FILE_LIMIT + 1)
        .read_to_end(&mut bytes)
        .map_err(describe)?;
    if bytes.len() as u64 > TEXT_FILE_LIMIT {
        return Err(Error::Model(format!(
            "{}: expected at most {TEXT_FILE_LIMIT} bytes, found more",
            path.display()
        )));
    }
    Ok(bytes)
}

/// The size of what has to be a file, before it is opened: a pipe would be waited for, and a device may have no end.
fn file_size(path: &Path) -> Result<u64> {
    match fs::metadata(path) {
        Ok(found) if found.is_file() => Ok(found.len()),
        Err(error) => Err(Error::Model(format!("{}: {error}", path.display()))),
        Ok(_) => Err(Error::Model(format!(
            "{}: expected a file, found something else",
            path.display()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder out of an archive may hold anything.
    #[test]
    fn what_is_no_file_is_not_read() {
        let folder = std::env::temp_dir().join(format!("reasoning-rpc-model-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        // It has no end, and says that it has no length.
        std::os::unix::fs::symlink("/dev/zero", folder.join("manifest.json")).unwrap();
        fs::create_dir(folder.join("tokenizer.json")).unwrap();
        for name in ["manifest.json", "tokenizer.json"] {
            let error = read_file(&folder, name).unwrap_err().to_string();
            assert!(error.contains("expected a file, found something else"), "{error}");
        }
        fs::remove_dir_all(&folder).unwrap();
    }
}
