//! A configuration file of any text: a configuration that is saved as itself, or mistakes that say where they are.
use lbd::config::{parse, to_toml};

/// Any text; what is no UTF-8 is refused before.
pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match parse("fuzz.toml", text) {
        Ok(loaded) => {
            let saved = to_toml(&loaded.config);
            match parse("saved.toml", &saved) {
                Ok(again) => assert_eq!(again.config, loaded.config, "saved as\n{saved}"),
                Err(errors) => panic!("what was saved is refused: {errors:#?}\n{saved}"),
            }
        }
        Err(errors) => {
            assert!(!errors.is_empty(), "a refusal says why");
            for error in errors {
                assert!(!error.to_string().is_empty());
            }
        }
    }
}
