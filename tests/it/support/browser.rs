//! A headless Chromium, driven by the WebDriver protocol that its chromedriver speaks.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::redis::free_port;
use super::server::lines;
use super::{PATIENCE, eventually};

/// Starting it takes the longest of all.
const START_PATIENCE: Duration = Duration::from_secs(60);

/// A browser with one page; dropped, it is closed.
pub struct Browser {
    driver: Child,
    session: String,
    web: reqwest::Client,
    _profile: TempDir,
}

/// Starts chromedriver, and returns its port too; `None`: it has ended instead.
fn start_driver(program: &Path) -> Option<(Child, u16)> {
    let port = free_port();
    let mut command = Command::new(program);
    command.arg(format!("--port={port}")).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut driver = command.spawn().expect("chromedriver");
    let said = lines(driver.stdout.take().expect("its stdout"));
    loop {
        match said.recv_timeout(START_PATIENCE) {
            Ok(line) if line.contains("started successfully") => return Some((driver, port)),
            Ok(_) => {}
            Err(RecvTimeoutError::Disconnected) => {
                driver.wait().expect("it has ended");
                return None;
            }
            Err(RecvTimeoutError::Timeout) => panic!("chromedriver does not say that it has started"),
        }
    }
}

impl Browser {
    /// Starts one. Without Chromium and its chromedriver there is none, which is said; CI, which installs them, must
    /// not go on without.
    pub async fn start() -> Option<Self> {
        Self::start_with(&[]).await
    }

    /// Starts one with more arguments.
    pub async fn start_with(more: &[&str]) -> Option<Self> {
        let (Some(chromium), Some(driver)) = (find(&["chromium", "chromium-browser", "google-chrome"]), find(&["chromedriver"])) else {
            assert!(std::env::var_os("LEADFOLD_TEST_CLIENTS").is_none(), "chromium and chromedriver are not in PATH");
            eprintln!("skipped: chromium and chromedriver are not in PATH (Debian: apt-get install chromium chromium-driver)");
            return None;
        };
        let profile = tempfile::tempdir().expect("a temporary directory");
        // It ends when its port is taken, by IPv4 or IPv6. Asked for any port it looks at one of them only.
        let (driver, port) = (0..5).find_map(|_| start_driver(&driver)).expect("chromedriver starts on some port");
        let web = reqwest::Client::builder().no_proxy().timeout(START_PATIENCE).build().expect("an HTTP client");
        let mut args: Vec<String> =
            ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage"]
                .into_iter()
                .chain(["--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1280,800"])
                .map(str::to_owned)
                .collect();
        args.extend(more.iter().map(|arg| (*arg).to_owned()));
        args.push(format!("--user-data-dir={}", profile.path().display()));
        let capabilities = json!({"capabilities": {"alwaysMatch": {
            "goog:chromeOptions": {"binary": chromium, "args": args},
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }}});
        let mut browser = Self { driver, session: format!("http://127.0.0.1:{port}/session"), web, _profile: profile };
        let id = browser.post("", capabilities).await["sessionId"].as_str().expect("a session").to_owned();
        browser.session = format!("{}/{id}", browser.session);
        Some(browser)
    }

    async fn post(&self, path: &str, body: Value) -> Value {
        let answer = self.web.post(format!("{}{path}", self.session)).json(&body).send().await.expect("chromedriver answers");
        let mut answer: Value = answer.json().await.expect("JSON");
        assert!(answer["value"]["error"].is_null(), "{path} {body}: {:#}", answer["value"]);
        answer["value"].take()
    }

    /// Opens an address.
    pub async fn open(&self, url: &str) {
        self.post("/url", json!({"url": url})).await;
    }

    /// The value of an expression in the page.
    pub async fn eval(&self, expression: &str) -> Value {
        self.post("/execute/sync", json!({"script": format!("return ({expression});"), "args": []})).await
    }

    /// What a script in the page hands to `done`.
    pub async fn run(&self, script: &str) -> Value {
        let script = format!("const done = arguments[arguments.length - 1];\n{script}");
        self.post("/execute/async", json!({"script": script, "args": []})).await
    }

    /// Waits for an expression to be true in the page.
    pub async fn wait(&self, expression: &str) {
        let what = format!("{expression} in the page");
        eventually(&what, async || self.eval(expression).await.as_bool().filter(|is_true| *is_true)).await;
    }

    /// Clicks in the middle of an element.
    pub async fn click(&self, selector: &str) {
        let element = self.post("/element", json!({"using": "css selector", "value": selector})).await;
        let id = element.as_object().and_then(|element| element.values().next()?.as_str()).expect("an element").to_owned();
        self.post(&format!("/element/{id}/click"), json!({})).await;
    }

    /// Presses keys, one after the other: characters, or what WebDriver has for the others.
    pub async fn press(&self, keys: &str) {
        let actions: Vec<Value> =
            keys.chars().flat_map(|key| [json!({"type": "keyDown", "value": key}), json!({"type": "keyUp", "value": key})]).collect();
        self.post("/actions", json!({"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})).await;
    }

    /// A command of Chromium's own protocol.
    pub async fn devtools(&self, command: &str, params: Value) -> Value {
        self.post("/goog/cdp/execute", json!({"cmd": command, "params": params})).await
    }

    /// Lets the page have this size, and the system this colour scheme.
    pub async fn appear(&self, width: u32, scheme: &str) {
        let metrics = json!({"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600});
        self.devtools("Emulation.setDeviceMetricsOverride", metrics).await;
        let features = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.devtools("Emulation.setEmulatedMedia", features).await;
    }

    /// What the console has shown since it was asked last: errors and warnings, violations of the policy among them.
    pub async fn problems(&self) -> Vec<String> {
        let entries = self.post("/se/log", json!({"type": "browser"})).await;
        let entries = entries.as_array().cloned().unwrap_or_default();
        let is_problem = |entry: &Value| matches!(entry["level"].as_str(), Some("SEVERE" | "WARNING"));
        entries.iter().filter(|entry| is_problem(entry)).map(|entry| entry["message"].to_string()).collect()
    }

    /// The addresses that were asked for since it was asked last.
    pub async fn requests(&self) -> Vec<String> {
        let entries = self.post("/se/log", json!({"type": "performance"})).await;
        let entries = entries.as_array().cloned().unwrap_or_default();
        let messages = entries.iter().filter_map(|entry| serde_json::from_str::<Value>(entry["message"].as_str()?).ok());
        let sent = messages.filter(|message| message["message"]["method"] == "Network.requestWillBeSent");
        sent.filter_map(|message| Some(message["message"]["params"]["request"]["url"].as_str()?.to_owned())).collect()
    }

    /// What axe-core finds wrong with the page for people with disabilities; `None` where there is no axe-core, which
    /// `.ci/run` installs.
    pub async fn accessibility_violations(&self) -> Option<Vec<Value>> {
        let clients = PathBuf::from(std::env::var_os("LEADFOLD_TEST_CLIENTS")?);
        let axe = std::fs::read_to_string(clients.join("node_modules/axe-core/axe.min.js")).expect("axe-core");
        // Colours that are on their way are nobody's.
        let script = format!(
            "{axe}\nPromise.all(document.getAnimations().map((a) => a.finished.catch(() => {{}}))).then(() => axe.run()).then((r) => done(r.violations.map((v) => [v.id, v.help, ...v.nodes.map((n) => [n.html, n.failureSummary])])), (e) => done([String(e)]));"
        );
        Some(self.run(&script).await.as_array().cloned().expect("a list"))
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Told to end, chromedriver ends Chromium; killed, it would leave it behind.
        let shutdown = Command::new("kill").args(["-s", "TERM", &self.driver.id().to_string()]).status();
        let deadline = std::time::Instant::now() + PATIENCE;
        while shutdown.is_ok() && std::time::Instant::now() < deadline {
            if matches!(self.driver.try_wait(), Ok(Some(_)) | Err(_)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

fn find(names: &[&str]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    names.iter().find_map(|name| std::env::split_paths(&path).map(|dir| dir.join(name)).find(|program| program.is_file()))
}
