//! include/reasoning_rpc.h is what the sources say. `UPDATE_HEADER=1 cargo test -p reasoning-rpc-capi
//! --test header` writes it.

use std::path::{Path, PathBuf};

/// The header's sections, from simple to advanced: title, introduction, module.

#[test]
fn raw() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for module in ["version","error","text","engine","sequence","generate","step","compression","stats"] {
        let mut config = cbindgen::Config::default();
        config.language = cbindgen::Language::C;
        config.no_includes = true;
        config.usize_is_size_t = true;
        config.documentation_style = cbindgen::DocumentationStyle::Doxy;
        config.style = cbindgen::Style::Both;
        config.sort_by = cbindgen::SortKey::None;
        config.function.sort_by = Some(cbindgen::SortKey::None);
        config.function.must_use = Some("RRPC_NODISCARD".into());
        config.export.include = vec!["rrpc_text".into()];
        let mut out = Vec::new();
        cbindgen::Builder::new().with_config(config).with_src(root.join(format!("src/{module}.rs"))).generate().unwrap().write(&mut out);
        println!("/* ==== {module} ==== */\n{}", String::from_utf8(out).unwrap());
    }
}
