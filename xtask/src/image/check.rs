//! What has to be true of programs and archive before anybody installs them.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use flate2::read::GzDecoder;
use object::Endianness;
use object::elf::{DT_NEEDED, EM_AARCH64, EM_X86_64, FileHeader64, PF_X, PT_GNU_STACK, PT_INTERP};
use object::read::elf::{Dyn, FileHeader, ProgramHeader};
use serde_json::Value;

use crate::process;

use super::archive::{CONFIG, Image, LAYER, MANIFEST, Platform, digest};

/// Files of a tar by path.
type Files = BTreeMap<String, Vec<u8>>;

/// A program needs nothing but the kernel, and is for the platform.
pub fn program(name: &str, content: &[u8], platform: Platform) -> Result<()> {
    let header = FileHeader64::<Endianness>::parse(content)
        .with_context(|| format!("{name} is not an ELF file of 64 bits"))?;
    let endian = header.endian()?;
    let machine = match platform {
        Platform::Amd64 => EM_X86_64,
        Platform::Arm64 => EM_AARCH64,
    };
    ensure!(
        header.e_machine(endian) == machine,
        "{name} is for another processor than {}",
        platform.architecture()
    );
    for segment in header.program_headers(endian, content)? {
        let kind = segment.p_type(endian);
        ensure!(
            kind != PT_INTERP,
            "{name} asks for a dynamic loader, which the image does not have"
        );
        ensure!(
            kind != PT_GNU_STACK || segment.p_flags(endian) & PF_X == 0,
            "{name} asks for a stack that can be executed"
        );
        if let Some(entries) = segment.dynamic(endian, content)? {
            ensure!(
                entries.iter().all(|entry| entry.tag(endian) != DT_NEEDED),
                "{name} needs a library, which the image does not have"
            );
        }
    }
    Ok(())
}

/// The archive is what both kinds of readers expect: each blob has the name that its content gives
/// it, every reference leads to one, and the layer has just the image's entries. Returns the
/// manifest's digest.
pub fn archive(archive: &[u8], image: &Image) -> Result<String> {
    let files = files(archive)?;
    for (path, content) in &files {
        if let Some(name) = path.strip_prefix("blobs/sha256/") {
            ensure!(
                digest(content) == format!("sha256:{name}"),
                "{path} has another content"
            );
        }
    }
    let layout = json(&files, "oci-layout")?;
    ensure!(
        layout["imageLayoutVersion"] == "1.0.0",
        "oci-layout says {layout}"
    );

    let index = json(&files, "index.json")?;
    let of_manifest = &index["manifests"][0];
    let annotations = &of_manifest["annotations"];
    ensure!(
        annotations["io.containerd.image.name"] == image.name,
        "index.json names the image {annotations}"
    );
    let (_, manifest) = blob(&files, of_manifest, MANIFEST)?;
    let manifest: Value = serde_json::from_slice(manifest).context("the manifest is no JSON")?;
    let (config_path, config) = blob(&files, &manifest["config"], CONFIG)?;
    let config: Value = serde_json::from_slice(config).context("the configuration is no JSON")?;
    let (layer_path, layer) = blob(&files, &manifest["layers"][0], LAYER)?;

    let docker = json(&files, "manifest.json")?;
    let expected = serde_json::json!([{
        "Config": config_path, "RepoTags": [image.name], "Layers": [layer_path],
    }]);
    ensure!(
        docker == expected,
        "manifest.json says {docker}, not {expected}"
    );
    ensure!(
        files.len() == 6,
        "the archive has files that nothing needs: {:?}",
        files.keys().collect::<Vec<_>>()
    );

    let mut plain = Vec::new();
    GzDecoder::new(layer)
        .read_to_end(&mut plain)
        .context("the layer is not compressed by gzip")?;
    ensure!(
        config["rootfs"]["diff_ids"] == serde_json::json!([digest(&plain)]),
        "the configuration names another layer than the archive has"
    );
    ensure!(
        config["architecture"] == image.platform.architecture() && config["os"] == "linux",
        "the configuration names another platform"
    );
    entries(&plain, image)?;
    Ok(of_manifest["digest"]
        .as_str()
        .unwrap_or_default()
        .to_owned())
}

/// The layer's entries are the image's, by path, and tell nothing of when and by whom they were made.
fn entries(plain: &[u8], image: &Image) -> Result<()> {
    let mut wanted: Vec<(String, u32, Option<&[u8]>)> = image
        .entries
        .iter()
        .map(|entry| (entry.path.clone(), entry.mode, entry.content.as_deref()))
        .collect();
    wanted.sort();
    let mut reader = tar::Archive::new(plain);
    let mut number = 0;
    for found in reader.entries().context("the layer is no tar")? {
        let mut found = found.context("the layer ends within an entry")?;
        let path = found
            .path()?
            .to_string_lossy()
            .trim_end_matches('/')
            .to_owned();
        let header = found.header();
        ensure!(
            (header.uid()?, header.gid()?, header.mtime()?) == (0, 0, 0),
            "{path} has an owner or a time"
        );
        let (directory, mode) = (header.entry_type().is_dir(), header.mode()?);
        let mut content = Vec::new();
        found.read_to_end(&mut content)?;
        let content = (!directory).then_some(content.as_slice());
        let (want_path, want_mode, want_content) = wanted
            .get(number)
            .with_context(|| format!("nothing asked for {path}"))?;
        ensure!(
            (&path, mode, content) == (want_path, *want_mode, *want_content),
            "{want_path} is missing, or {path} is not as it should be"
        );
        number += 1;
    }
    ensure!(
        number == wanted.len(),
        "the layer has {number} entries of {}",
        wanted.len()
    );
    Ok(())
}

/// The program runs with nothing else below its root where this process may change it (root), else
/// as it is, and prints the version.
pub fn runs(path: &Path, argument: &str, version: &str) -> Result<()> {
    let printed = if process::is_root() {
        let directory = path.parent().context("a program lies in a directory")?;
        let name = path.file_name().context("a program has a name")?;
        let inside = Path::new("/").join(name);
        process::output(
            process::command("chroot")
                .arg(directory)
                .arg(inside)
                .arg(argument),
        )?
    } else {
        process::output(process::command(path).arg(argument))?
    };
    ensure!(
        printed.split_whitespace().any(|word| word == version),
        "{} {argument} printed {printed:?}, without the version {version}",
        path.display()
    );
    Ok(())
}

/// All files of a tar by path.
fn files(tar: &[u8]) -> Result<Files> {
    let mut files = BTreeMap::new();
    for entry in tar::Archive::new(tar)
        .entries()
        .context("the archive is no tar")?
    {
        let mut entry = entry.context("the archive ends within an entry")?;
        let path = entry.path()?.to_string_lossy().into_owned();
        let mut content = Vec::new();
        entry.read_to_end(&mut content)?;
        ensure!(
            files.insert(path.clone(), content).is_none(),
            "{path} is there twice"
        );
    }
    Ok(files)
}

fn json(files: &Files, path: &str) -> Result<Value> {
    let content = files
        .get(path)
        .with_context(|| format!("the archive has no {path}"))?;
    serde_json::from_slice(content).with_context(|| format!("{path} is no JSON"))
}

/// The path and content of what a descriptor names.
fn blob<'a>(files: &'a Files, descriptor: &Value, media_type: &str) -> Result<(String, &'a [u8])> {
    ensure!(
        descriptor["mediaType"] == media_type,
        "a descriptor names {}, not {media_type}",
        descriptor["mediaType"]
    );
    let digest = descriptor["digest"]
        .as_str()
        .context("a descriptor has no digest")?;
    let path = format!("blobs/{}", digest.replace(':', "/"));
    let content = files
        .get(&path)
        .with_context(|| format!("the archive has no {path}"))?;
    ensure!(
        descriptor["size"] == content.len(),
        "{path} has {} octets, its descriptor says {}",
        content.len(),
        descriptor["size"]
    );
    Ok((path, content))
}

#[cfg(test)]
mod tests {
    use super::super::layer::{self, Entry};
    use super::*;

    fn with_image<T>(run: impl FnOnce(&Image) -> T) -> T {
        let mut entries = layer::directories();
        entries.push(Entry::file("usr/bin/tulle", 0o755, b"program".to_vec()));
        run(&Image {
            name: "localhost/tulle:1",
            version: "1",
            platform: Platform::Amd64,
            entries: &entries,
        })
    }

    /// The archive with its files changed by `change`.
    fn changed(image: &Image, change: impl FnOnce(&mut Files)) -> Vec<u8> {
        let mut files = files(&image.archive().unwrap()).unwrap();
        change(&mut files);
        let entries: Vec<Entry> = files
            .into_iter()
            .map(|(path, content)| Entry::file(&path, 0o644, content))
            .collect();
        layer::tar(&entries).unwrap()
    }

    #[test]
    fn an_archive_is_as_it_has_to_be_and_always_the_same() {
        with_image(|image| {
            let made = image.archive().unwrap();
            let digest = archive(&made, image).unwrap();
            assert!(
                digest.starts_with("sha256:") && digest.len() == 71,
                "{digest}"
            );
            assert_eq!(made, image.archive().unwrap());
        });
    }

    #[test]
    fn a_damaged_archive_is_found_out() {
        with_image(|image| {
            let refused = |change: &dyn Fn(&mut Files)| {
                format!("{:#}", archive(&changed(image, change), image).unwrap_err())
            };
            let blob = |files: &Files| {
                files
                    .keys()
                    .find(|path| path.starts_with("blobs/"))
                    .unwrap()
                    .clone()
            };
            let text = refused(&|files| files.get_mut(&blob(files)).unwrap().push(0));
            assert!(text.contains("another content"), "{text}");
            let text = refused(&|files| drop(files.remove(&blob(files))));
            assert!(text.contains("has no blobs/"), "{text}");
            let text = refused(&|files| drop(files.remove("manifest.json")));
            assert!(text.contains("no manifest.json"), "{text}");
            let text = refused(&|files| drop(files.insert("x".into(), Vec::new())));
            assert!(text.contains("nothing needs"), "{text}");
        });
    }

    #[test]
    fn a_layer_with_another_entry_is_found_out() {
        let made = with_image(|image| image.archive().unwrap());
        let mut entries = layer::directories();
        entries.push(Entry::file("usr/bin/tulle", 0o755, b"another".to_vec()));
        let other = Image {
            name: "localhost/tulle:1",
            version: "1",
            platform: Platform::Amd64,
            entries: &entries,
        };
        let text = format!("{:#}", archive(&made, &other).unwrap_err());
        assert!(text.contains("usr/bin/tulle"), "{text}");
    }

    #[test]
    fn a_dynamic_program_is_refused() {
        // The test itself is one.
        let this = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let here = Platform::of_this_machine().unwrap();
        let text = program("test", &this, here).unwrap_err().to_string();
        assert!(text.contains("dynamic loader"), "{text}");
        let other = match here {
            Platform::Amd64 => Platform::Arm64,
            Platform::Arm64 => Platform::Amd64,
        };
        let text = program("test", &this, other).unwrap_err().to_string();
        assert!(text.contains("another processor"), "{text}");
        assert!(program("text", b"#!/bin/sh", here).is_err());
    }
}
