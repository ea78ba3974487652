//! Which modules to load, and in which order: by what each module says it depends on. Debian's
//! packages bring no `modules.dep`, which is made where a kernel is installed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::process;

/// The modules of one kernel.
#[derive(Debug, Default)]
pub struct Modules {
    files: BTreeMap<String, PathBuf>,
    builtin: Vec<String>,
}

/// A module to load: its name and its content, unpacked.
pub type Loadable = (String, Vec<u8>);

impl Modules {
    /// Finds them under `lib/modules/<release>`.
    pub fn find(directory: &Path) -> Result<Self> {
        let list = directory.join("modules.builtin");
        let text =
            fs::read_to_string(&list).with_context(|| format!("cannot read {}", list.display()))?;
        let mut modules = Self {
            files: BTreeMap::new(),
            builtin: text
                .lines()
                .filter_map(|line| name(Path::new(line)))
                .collect(),
        };
        modules.add(&directory.join("kernel"))?;
        Ok(modules)
    }

    fn add(&mut self, directory: &Path) -> Result<()> {
        let what = || format!("cannot list {}", directory.display());
        for entry in fs::read_dir(directory).with_context(what)? {
            let entry = entry.with_context(what)?;
            let path = entry.path();
            if entry.file_type().with_context(what)?.is_dir() {
                self.add(&path)?;
            } else if let Some(name) = name(&path) {
                self.files.insert(name, path);
            }
        }
        Ok(())
    }

    /// Reads `wanted` and what they depend on, each after what it needs. What is built in needs no
    /// loading; a name that the kernel does not know is an error.
    pub fn in_order(&self, wanted: &[&str]) -> Result<Vec<Loadable>> {
        let read = |name: &str| {
            let Some(path) = self.files.get(name) else {
                return if self.builtin.iter().any(|known| known == name) {
                    Ok(None)
                } else {
                    bail!("this kernel has no module {name}: take a package of another flavour")
                };
            };
            unpacked(path).map(Some)
        };
        let mut order = Order {
            read: &read,
            path: Vec::new(),
            done: Vec::new(),
        };
        for name in wanted {
            order.visit(&normal(name))?;
        }
        Ok(order.done)
    }
}

/// A walk through dependencies.
struct Order<'a> {
    read: &'a dyn Fn(&str) -> Result<Option<Vec<u8>>>,
    path: Vec<String>,
    done: Vec<Loadable>,
}

impl Order<'_> {
    fn visit(&mut self, name: &str) -> Result<()> {
        if self.done.iter().any(|(done, _)| done == name) {
            return Ok(());
        }
        if self.path.iter().any(|above| above == name) {
            bail!(
                "modules depend on each other: {} and {name}",
                self.path.join(", ")
            );
        }
        let Some(content) = (self.read)(name)? else {
            return Ok(());
        };
        self.path.push(name.to_owned());
        for needed in depends(&content) {
            self.visit(&needed)?;
        }
        self.path.pop();
        self.done.push((name.to_owned(), content));
        Ok(())
    }
}

/// The names after `depends=` in the strings of a module's section `.modinfo`.
fn depends(module: &[u8]) -> Vec<String> {
    const FIELD: &[u8] = b"depends=";
    module
        .split(|octet| *octet == 0)
        .find_map(|text| text.strip_prefix(FIELD))
        .map(|list| {
            String::from_utf8_lossy(list)
                .split(',')
                .filter(|name| !name.is_empty())
                .map(normal)
                .collect()
        })
        .unwrap_or_default()
}

/// The name of a module's file, if it is one.
fn name(path: &Path) -> Option<String> {
    let file = path.file_name()?.to_str()?;
    let (name, kind) = file.split_once(".ko")?;
    ["", ".xz", ".gz"].contains(&kind).then(|| normal(name))
}

/// File names and `depends=` differ in what they write between words.
fn normal(name: &str) -> String {
    name.replace('-', "_")
}

fn unpacked(path: &Path) -> Result<Vec<u8>> {
    let program = match path.extension().and_then(|kind| kind.to_str()) {
        Some("xz") => "xz",
        Some("gz") => "gzip",
        _ => return fs::read(path).with_context(|| format!("cannot read {}", path.display())),
    };
    let out = process::command(program)
        .arg("-dc")
        .arg(path)
        .output()
        .with_context(|| format!("cannot start {program}"))?;
    if !out.status.success() {
        bail!(
            "cannot unpack {}: {}",
            path.display(),
            String::from_utf8_lossy(&out.stderr).trim()
        );
    }
    Ok(out.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(modules: &[(&str, &str)], builtin: &str) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let net = directory.path().join("kernel/net");
        fs::create_dir_all(&net).unwrap();
        fs::write(directory.path().join("modules.builtin"), builtin).unwrap();
        for (file, depends) in modules {
            let content = format!("ELF\0license=GPL\0depends={depends}\0name=x\0");
            fs::write(net.join(file), content).unwrap();
        }
        directory
    }

    fn order(directory: &Path, wanted: &[&str]) -> Result<Vec<String>> {
        let modules = Modules::find(directory)?.in_order(wanted)?;
        Ok(modules.into_iter().map(|(name, _)| name).collect())
    }

    #[test]
    fn what_is_needed_comes_first_and_once() {
        let directory = kernel(
            &[
                ("vxlan.ko", "udp_tunnel,ip6_udp_tunnel"),
                ("udp_tunnel.ko", ""),
                ("ip6-udp-tunnel.ko", "udp-tunnel,ipv6"),
                ("veth.ko", ""),
                ("other.ko", "vxlan"),
            ],
            "kernel/net/ipv6/ipv6.ko\n",
        );
        assert_eq!(
            order(directory.path(), &["veth", "vxlan", "ipv6", "udp_tunnel"]).unwrap(),
            ["veth", "udp_tunnel", "ip6_udp_tunnel", "vxlan"]
        );
    }

    #[test]
    fn an_unknown_module_and_a_circle_are_errors() {
        let directory = kernel(&[("a.ko", "b"), ("b.ko", "a"), ("c.ko", "gone")], "");
        let said = |wanted: &str| order(directory.path(), &[wanted]).unwrap_err().to_string();
        assert!(said("a").contains("depend on each other"), "{}", said("a"));
        assert!(said("c").contains("no module gone"), "{}", said("c"));
    }

    #[test]
    fn only_files_of_modules_count() {
        for (file, expected) in [
            ("a/sch-ingress.ko", Some("sch_ingress")),
            ("veth.ko.xz", Some("veth")),
            ("veth.ko.gz", Some("veth")),
            ("veth.ko.bak", None),
            ("modules.order", None),
        ] {
            assert_eq!(name(Path::new(file)).as_deref(), expected, "{file}");
        }
    }

    #[test]
    fn a_compressed_module_is_unpacked() {
        let directory = kernel(&[("a.ko", "")], "");
        let plain = directory.path().join("kernel/net/a.ko");
        process::output(process::command("gzip").arg(&plain)).unwrap();
        let modules = Modules::find(directory.path()).unwrap();
        let (_, content) = modules.in_order(&["a"]).unwrap().remove(0);
        assert!(content.starts_with(b"ELF\0"));
    }
}
