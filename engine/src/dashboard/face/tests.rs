//! What holds for every page: see the invariants in the module's header.

use std::collections::HashSet;

use super::samples::{self, Sample};
use super::{assets, paths};

/// Text that breaks whatever is not escaped, in an element, in an attribute, in a script.
const HOSTILE: &str = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&amp;";

fn friendly() -> Vec<Sample> {
    samples::all(str::to_owned)
}

fn hostile() -> Vec<Sample> {
    samples::all(|text| format!("{text}{HOSTILE}"))
}

/// The tags of a page, as they are written: `a href="…"`.
fn tags(html: &str) -> Vec<&str> {
    let ends = |tag: &&str| tag.starts_with(|c: char| c.is_ascii_alphabetic());
    html.split('<')
        .skip(1)
        .map(|rest| rest.split('>').next().unwrap_or_default())
        .filter(ends)
        .collect()
}

fn name(tag: &str) -> &str {
    tag.split([' ', '/']).next().unwrap_or_default()
}

fn attribute<'a>(tag: &'a str, name: &str) -> Option<&'a str> {
    let start = tag.find(&format!(" {name}=\""))? + name.len() + 3;
    tag.get(start..)?.split('"').next()
}

#[test]
fn whatever_text_says_it_stays_text() {
    // As long, since some of what is long is shown behind a click.
    let harmless = samples::all(|text| format!("{text}{}", "x".repeat(HOSTILE.len())));
    for (safe, nasty) in harmless.iter().zip(hostile()) {
        let names = |html: &str| {
            tags(html)
                .into_iter()
                .map(name)
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        assert_eq!(
            names(&safe.html),
            names(&nasty.html),
            "{}: text became markup",
            safe.name
        );
        assert!(!nasty.html.contains(HOSTILE), "{}", safe.name);
        let hostile_links = tags(&nasty.html)
            .into_iter()
            .filter_map(|tag| attribute(tag, "href").or_else(|| attribute(tag, "action")))
            .any(|target| !target.starts_with('/') && !target.starts_with('#'));
        assert!(!hostile_links, "{}: a link leaves the dashboard", safe.name);
    }
}

#[test]
fn pages_have_no_inline_script_and_no_inline_style() {
    for page in hostile() {
        for tag in tags(&page.html) {
            let tag_name = name(tag);
            assert_ne!(tag_name, "style", "{}", page.name);
            if tag_name == "script" {
                let source = attribute(tag, "src").unwrap_or_default();
                assert!(
                    source.starts_with("/dashboard/assets/"),
                    "{}: {tag}",
                    page.name
                );
            }
            assert!(attribute(tag, "style").is_none(), "{}: {tag}", page.name);
            let is_handler =
                |attribute: &str| attribute.starts_with("on") && attribute.contains('=');
            let outside_quotes = tag.split('"').step_by(2).flat_map(str::split_whitespace);
            let handlers: Vec<_> = outside_quotes.filter(|part| is_handler(part)).collect();
            assert!(handlers.is_empty(), "{}: {handlers:?}", page.name);
        }
        assert!(
            page.html.contains("<script type=\"module\" src="),
            "{}",
            page.name
        );
    }
}

#[test]
fn pages_have_one_heading_a_title_and_a_language() {
    for page in friendly() {
        let html = &page.html;
        assert_eq!(html.matches("<h1>").count(), 1, "{}", page.name);
        assert_eq!(html.matches("<main ").count(), 1, "{}", page.name);
        assert!(
            html.starts_with("<!DOCTYPE html><html lang=\"en\">"),
            "{}",
            page.name
        );
        assert!(html.contains(" · Shardwire</title>"), "{}", page.name);
        assert!(
            html.contains("href=\"#main\""),
            "{}: no skip link",
            page.name
        );
    }
}

#[test]
fn every_input_has_a_label_and_every_id_is_its_own() {
    for page in friendly() {
        let tags = tags(&page.html);
        let ids: Vec<_> = tags.iter().filter_map(|tag| attribute(tag, "id")).collect();
        let different: HashSet<_> = ids.iter().collect();
        assert_eq!(ids.len(), different.len(), "{}: {ids:?}", page.name);
        let labelled: HashSet<_> = tags
            .iter()
            .filter(|tag| name(tag) == "label")
            .filter_map(|tag| attribute(tag, "for"))
            .collect();
        for tag in &tags {
            let is_input = matches!(name(tag), "input" | "select" | "textarea");
            if is_input && attribute(tag, "type") != Some("hidden") {
                let id = attribute(tag, "id").unwrap_or_default();
                assert!(labelled.contains(id), "{}: {tag}", page.name);
            }
            let refers = ["for", "aria-labelledby", "popovertarget", "data-copy"];
            for target in refers.iter().filter_map(|name| attribute(tag, name)) {
                assert!(
                    different.contains(&target),
                    "{}: nothing is {target}",
                    page.name
                );
            }
        }
    }
}

#[test]
fn forms_that_change_something_have_the_csrf_field() {
    for page in friendly() {
        for form in page.html.split("<form ").skip(1) {
            let form = form.split("</form>").next().unwrap_or_default();
            if form.starts_with("method=\"post\"") {
                let field = "<input type=\"hidden\" name=\"csrf\" value=\"Zx81kq3vT0\">";
                assert!(form.contains(field), "{}: {form}", page.name);
            }
        }
    }
}

#[test]
fn links_and_forms_lead_somewhere() {
    for page in friendly() {
        for tag in tags(&page.html) {
            let method = match (name(tag), attribute(tag, "method")) {
                ("form", Some("post")) | ("button", _) => "POST",
                _ => "GET",
            };
            let targets = ["href", "src", "action", "formaction"];
            for target in targets.iter().filter_map(|name| attribute(tag, name)) {
                if !target.starts_with('#') {
                    assert!(is_known(method, target), "{}: {method} {target}", page.name);
                }
            }
        }
    }
}

fn is_known(method: &str, target: &str) -> bool {
    let Some(path) = target.strip_prefix(paths::BASE) else {
        return false;
    };
    let path = path.split(['?', '#']).next().unwrap_or_default();
    let parts: Vec<_> = path.split('/').collect();
    let fits = |pattern: &str| {
        let wanted: Vec<_> = pattern.split('/').collect();
        wanted.len() == parts.len()
            && wanted.iter().zip(&parts).all(|(wanted, part)| {
                wanted == part || (wanted.starts_with('{') && !part.is_empty())
            })
    };
    let routes = paths::ROUTES.iter();
    routes
        .filter(|(known, _)| *known == method)
        .any(|(_, pattern)| fits(pattern))
}

#[test]
fn whoever_may_not_change_keys_is_not_offered_to() {
    let pages = friendly();
    let find = |name: &str| {
        &pages
            .iter()
            .find(|page| page.name == name)
            .expect("a sample")
            .html
    };
    assert!(find("keys").contains("/rotate\""));
    assert!(!find("keys-viewer").contains("/rotate\""));
    assert!(!find("keys-viewer").contains("New key"));
    assert!(!find("settings-viewer").contains("/delete\""));
}

#[test]
fn scripts_and_styles_keep_to_the_policy() {
    for asset in assets::ASSETS {
        let text = std::str::from_utf8(asset.bytes).expect("all assets are text");
        for word in [
            "eval(",
            "new Function",
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            ".style.",
            "@import",
            "http://",
            "https://",
        ] {
            let is_namespace = word == "http://"
                && text.matches(word).count() == text.matches("http://www.w3.org/").count();
            assert!(
                is_namespace || !text.contains(word),
                "{}: {word}",
                asset.name
            );
        }
        assert_eq!(
            assets::find(asset.name).map(|found| found.name),
            Some(asset.name)
        );
    }
    assert_eq!(assets::version().len(), 16);
}

#[test]
fn imports_of_scripts_are_there() {
    for asset in assets::ASSETS
        .iter()
        .filter(|asset| asset.name.ends_with(".js"))
    {
        let text = std::str::from_utf8(asset.bytes).expect("all assets are text");
        for import in text.split("from './").skip(1) {
            let name = import.split('\'').next().unwrap_or_default();
            assert!(assets::find(name).is_some(), "{}: {name}", asset.name);
        }
    }
}

/// Writes every page to the folder that the variable names, with what they need, to be looked at.
#[test]
fn preview() {
    let Some(folder) = std::env::var_os("SHARDWIRE_PREVIEW_DIR").map(std::path::PathBuf::from)
    else {
        return;
    };
    let dashboard = folder.join("dashboard");
    let files = dashboard.join("assets").join(assets::version());
    std::fs::create_dir_all(&files).expect("the folder can be made");
    for asset in assets::ASSETS {
        std::fs::write(files.join(asset.name), asset.bytes).expect("written");
    }
    for page in friendly() {
        std::fs::write(folder.join(format!("{}.html", page.name)), page.html).expect("written");
    }
}
