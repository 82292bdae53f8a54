//! Kubeconfigs for the API: readable by this user only, gone with us.
//!
//! The token stands in the path, too: `kubectl` keeps tokens to itself where there is no TLS.

use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde_json::json;

/// The folder for the kubeconfigs, and those in it; removed on drop.
pub(crate) struct Folder {
    path: PathBuf,
    is_ours: bool,
    files: Vec<PathBuf>,
}

impl Folder {
    /// `$XDG_RUNTIME_DIR/dormouse`, else a folder of our own among the temporary ones.
    pub(crate) fn open() -> std::io::Result<Self> {
        let runtime = std::env::var_os("XDG_RUNTIME_DIR")
            .map(PathBuf::from)
            .filter(|it| it.is_dir());
        let (path, is_ours) = match runtime {
            Some(runtime) => (runtime.join("dormouse"), false),
            None => (
                std::env::temp_dir().join(format!(
                    "dormouse-{}",
                    random_token()?.get(..16).unwrap_or_default()
                )),
                true,
            ),
        };
        match std::fs::DirBuilder::new().mode(0o700).create(&path) {
            // One of our own must be new: in a folder that all may write to, an old one may be somebody else's.
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && !is_ours => {}
            Err(error) => return Err(error),
            Ok(()) => {}
        }
        Ok(Self {
            path,
            is_ours,
            files: Vec::new(),
        })
    }

    /// Writes a kubeconfig; where it is.
    pub(crate) fn write(
        &mut self,
        at: Option<&Path>,
        name: &str,
        api: SocketAddr,
        token: &str,
        namespace: &str,
    ) -> std::io::Result<PathBuf> {
        let path = at.map_or_else(|| self.path.join(name), Path::to_owned);
        let path = std::path::absolute(path)?;
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": "dormouse-local", "cluster": { "server": format!("http://{api}{}", crate::api::path_of(token)) } }],
            "users": [{ "name": "dormouse-local", "user": { "token": token } }],
            "contexts": [{ "name": "dormouse-local", "context": {
                "cluster": "dormouse-local", "user": "dormouse-local", "namespace": namespace,
            } }],
            "current-context": "dormouse-local",
        });
        // A new file, renamed into place: whoever reads at this moment sees the old one or the new one, and an old
        // file's wider mode is not inherited.
        let fresh = path.with_extension(format!("{}.new", std::process::id()));
        let _ = std::fs::remove_file(&fresh);
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&fresh)?;
        // JSON is YAML.
        file.write_all(serde_json::to_string_pretty(&config)?.as_bytes())?;
        file.write_all(b"\n")?;
        drop(file);
        std::fs::rename(&fresh, &path)?;
        self.files.push(path.clone());
        Ok(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        for file in &self.files {
            let _ = std::fs::remove_file(file);
        }
        if self.is_ours {
            let _ = std::fs::remove_dir(&self.path);
        }
    }
}

/// 256 random bits in hexadecimal: a token that nobody guesses.
///
/// # Errors
/// When the system gives no random bytes.
pub fn random_token() -> std::io::Result<String> {
    use std::io::Read;
    let mut bytes = [0_u8; 32];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_kubeconfig_is_readable_by_its_owner_only_and_goes_with_us() {
        let mut folder = Folder::open().expect("a folder");
        let token = random_token().expect("random bytes");
        let name = format!("test-{token}");
        let path = folder
            .write(
                None,
                &name,
                "127.0.0.1:1".parse().expect("an address"),
                &token,
                "default",
            )
            .expect("a file");
        let mode = std::fs::metadata(&path).expect("the file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(std::fs::read_to_string(&path).expect("the file").contains(&token));
        drop(folder);
        assert!(!path.exists());
    }
}
