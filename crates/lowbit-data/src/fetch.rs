//! Downloading the published files.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ureq::http::{HeaderMap, StatusCode};
use ureq::{Agent, Body};

use crate::error::{Action, FetchFailure};
use crate::locate::is_file;
use crate::verify::{FileStatus, check_file};
use crate::{DataError, DatasetName, RemoteFile};

/// What to download and where to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchRequest {
    /// The data set.
    pub name: DatasetName,
    /// Where data is kept: the files go to `<data_home>/<name>/`. See
    /// [`Locations::require_data_home`](crate::Locations::require_data_home).
    pub data_home: PathBuf,
    /// A folder on another server that holds files of the published names; `None` for the addresses of the catalog.
    pub base_url: Option<String>,
}

impl FetchRequest {
    /// Fetch a data set from the addresses of the catalog.
    pub fn new(name: DatasetName, data_home: impl Into<PathBuf>) -> Self {
        FetchRequest { name, data_home: data_home.into(), base_url: None }
    }
}

/// How far a download is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress<'a> {
    /// Name of the file.
    pub file_name: &'a str,
    /// Index of the file, from 0.
    pub file_idx: usize,
    /// Number of files of the data set.
    pub n_files: usize,
    /// Bytes of the file at hand, with those of an earlier, interrupted download.
    pub received: u64,
    /// Length of the file.
    pub total: u64,
}

/// Downloads the files of a data set and checks them; returns their paths.
///
/// A file that is already there and good is not downloaded. A file is written under the name `<file>.part`, which is
/// kept when the connection ends, so that the next call resumes it. A complete download with another checksum than
/// the published one is removed, so that the next call starts afresh. For built-in data sets nothing happens.
///
/// Proxies are taken from the usual environment variables (`HTTPS_PROXY` and so on), except for addresses on this
/// machine.
///
/// # Errors
/// [`DataError::Fetch`] names the files to put by hand and the directory. [`DataError::ChecksumMismatch`],
/// [`DataError::FetchInProgress`], [`DataError::Permission`] and [`DataError::Io`] are what they say.
pub fn fetch(
    request: &FetchRequest,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Vec<PathBuf>, DataError> {
    fetch_files(request, request.name.info().files, progress)
}

fn fetch_files(
    request: &FetchRequest,
    files: &[RemoteFile],
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Vec<PathBuf>, DataError> {
    if files.is_empty() {
        return Ok(Vec::new());
    }
    let dir = request.data_home.join(request.name.as_str());
    fs::create_dir_all(&dir).map_err(|e| DataError::io(&dir, Action::Create, e))?;
    let mut paths = Vec::new();
    for (file_idx, file) in files.iter().enumerate() {
        let mut received = |received, total| {
            progress(Progress { file_name: file.file_name, file_idx, n_files: files.len(), received, total });
        };
        let base_url = request.base_url.as_deref().unwrap_or(file.base_url).trim_end_matches('/');
        let download = Download { file, url: format!("{base_url}/{}", file.file_name), dir: &dir };
        let path = download.run(&mut received).map_err(|error| match error {
            DownloadError::Data(error) => error,
            DownloadError::Failure(failure) => DataError::Fetch {
                name: request.name,
                url: download.url.clone(),
                failure,
                files: files[file_idx..].iter().map(|file| file.file_name.into()).collect(),
                dir: dir.clone(),
            },
        })?;
        paths.push(path);
    }
    Ok(paths)
}

/// One file on its way.
struct Download<'a> {
    file: &'a RemoteFile,
    url: String,
    dir: &'a Path,
}

enum DownloadError {
    Data(DataError),
    Failure(FetchFailure),
}

impl From<DataError> for DownloadError {
    fn from(error: DataError) -> Self {
        DownloadError::Data(error)
    }
}

impl From<FetchFailure> for DownloadError {
    fn from(failure: FetchFailure) -> Self {
        DownloadError::Failure(failure)
    }
}

impl Download<'_> {
    fn run(&self, progress: &mut dyn FnMut(u64, u64)) -> Result<PathBuf, DownloadError> {
        let path = self.dir.join(self.file.file_name);
        if is_file(&path)? {
            self.check(&path, Existing::Keep)?;
            progress(self.file.size, self.file.size);
            return Ok(path);
        }
        let part = self.dir.join(format!("{}.part", self.file.file_name));
        let mut out = open_part(&part)?;
        let io_error = |action| {
            move |e| DownloadError::Data(DataError::io(&self.dir.join(self.file.file_name), action, e))
        };
        let at_hand = out.seek(SeekFrom::End(0)).map_err(io_error(Action::Write))?;
        // A download that was interrupted between its last byte and the rename is complete already.
        if at_hand != self.file.size {
            self.download(&mut out, &part, at_hand, progress)?;
        }
        out.sync_all().map_err(io_error(Action::Write))?;
        self.check(&part, Existing::Remove)?;
        fs::rename(&part, &path).map_err(io_error(Action::Rename))?;
        Ok(path)
    }

    /// Completes the partial file, of which `at_hand` bytes are there.
    fn download(
        &self,
        out: &mut File,
        part: &Path,
        at_hand: u64,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(), DownloadError> {
        let mut response = self.request(at_hand)?;
        // The partial file is longer than the file of the server, or the server objects to the range: start over.
        if response.status() == StatusCode::RANGE_NOT_SATISFIABLE && at_hand > 0 {
            response = self.request(0)?;
        }
        let resumed = response.status() == StatusCode::PARTIAL_CONTENT
            && range_start(response.headers()) == Some(at_hand);
        let mut received = match response.status() {
            StatusCode::PARTIAL_CONTENT if resumed => at_hand,
            // The server sends another part than asked for.
            StatusCode::PARTIAL_CONTENT => {
                response = self.request(0)?;
                0
            }
            _ => 0,
        };
        if !resumed && response.status() != StatusCode::OK {
            return Err(FetchFailure::Status(response.status().as_u16()).into());
        }
        let write_error = |e| DownloadError::Data(DataError::io(part, Action::Write, e));
        out.set_len(received).map_err(write_error)?;
        out.seek(SeekFrom::Start(received)).map_err(write_error)?;

        let body = response.into_body();
        let total = body.content_length().map_or(self.file.size, |length| received + length);
        let mut body = body.into_reader();
        let mut buffer = vec![0; 1 << 16];
        progress(received, total);
        loop {
            let n_read = match body.read(&mut buffer) {
                Ok(0) => break,
                Ok(n_read) => n_read,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => break,
                Err(e) => return Err(FetchFailure::Connection(e.into()).into()),
            };
            out.write_all(&buffer[..n_read]).map_err(write_error)?;
            received += n_read as u64;
            progress(received, total);
        }
        if received < total {
            return Err(FetchFailure::CutShort { expected: total, got: received }.into());
        }
        Ok(())
    }

    fn request(&self, at_hand: u64) -> Result<ureq::http::Response<Body>, FetchFailure> {
        // Compression by the server would make byte ranges and checksums those of another file.
        let mut request = agent(&self.url).get(&self.url).header("Accept-Encoding", "identity");
        if at_hand > 0 {
            request = request.header("Range", format!("bytes={at_hand}-"));
        }
        request.call().map_err(|e| FetchFailure::Connection(e.into()))
    }

    fn check(&self, path: &Path, existing: Existing) -> Result<(), DataError> {
        let FileStatus::Differs { kind, expected, got } = check_file(path, self.file)? else { return Ok(()) };
        let removed = existing == Existing::Remove;
        if removed {
            fs::remove_file(path).map_err(|e| DataError::io(path, Action::Remove, e))?;
        }
        Err(DataError::ChecksumMismatch { path: path.to_owned(), kind, expected, got, removed })
    }
}

/// What happens to a file with another checksum than the published one.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Existing {
    /// It was there before: it may be the user's.
    Keep,
    /// It is our download.
    Remove,
}

/// Opens the partial file for this process alone; the lock ends with the process.
fn open_part(part: &Path) -> Result<File, DataError> {
    let create_error = |e| DataError::io(part, Action::Create, e);
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(part);
    let file = file.map_err(create_error)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(DataError::FetchInProgress { path: part.to_owned() }),
        // A file system without locks: go on without.
        Err(TryLockError::Error(e)) if e.kind() == std::io::ErrorKind::Unsupported => Ok(file),
        Err(TryLockError::Error(e)) => Err(create_error(e)),
    }
}

fn agent(url: &str) -> Agent {
    let config = Agent::config_builder()
        .http_status_as_error(false)
        .timeout_resolve(Some(Duration::from_secs(30)))
        .timeout_connect(Some(Duration::from_secs(30)))
        .timeout_recv_response(Some(Duration::from_secs(60)))
        .timeout_per_read(Some(Duration::from_secs(60)))
        .user_agent(concat!("lowbit/", env!("CARGO_PKG_VERSION")));
    let local = ["http://127.0.0.1", "http://localhost", "http://[::1]"];
    let config = if local.iter().any(|host| url.starts_with(host)) { config.proxy(None) } else { config };
    config.build().new_agent()
}

/// The first byte's position of a `Content-Range: bytes 5-9/10` header.
fn range_start(headers: &HeaderMap) -> Option<u64> {
    let value = headers.get("content-range")?.to_str().ok()?;
    value.strip_prefix("bytes ")?.split('-').next()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::net::{TcpListener, TcpStream};
    use std::sync::{Arc, Mutex};
    use std::thread;

    use md5::{Digest, Md5};

    use super::*;

    /// How the server answers.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Manner {
        /// Ranges are served.
        Ranges,
        /// Every answer is the whole file.
        NoRanges,
        /// Every range is refused.
        RefuseRanges,
        /// Every range starts elsewhere.
        WrongRanges,
        /// The connection ends in the middle of the file.
        CutAt(usize),
        /// The file does not exist.
        NotFound,
    }

    /// A server of one content under any name; it remembers the ranges asked for.
    struct Server {
        base_url: String,
        ranges: Arc<Mutex<Vec<Option<usize>>>>,
    }

    impl Server {
        fn new(content: Vec<u8>, manner: Manner) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let base_url = format!("http://{}/data", listener.local_addr().unwrap());
            let ranges = Arc::new(Mutex::new(Vec::new()));
            let seen = Arc::clone(&ranges);
            // Ends with the test process.
            thread::spawn(move || {
                for connection in listener.incoming() {
                    answer(connection.unwrap(), &content, manner, &seen);
                }
            });
            Server { base_url, ranges }
        }

        fn ranges(&self) -> Vec<Option<usize>> {
            self.ranges.lock().unwrap().clone()
        }
    }

    fn answer(connection: TcpStream, content: &[u8], manner: Manner, seen: &Mutex<Vec<Option<usize>>>) {
        let mut range = None;
        for line in BufReader::new(&connection).lines() {
            let line = line.unwrap().to_lowercase();
            if let Some(value) = line.strip_prefix("range: bytes=") {
                range = Some(value.trim_end_matches('-').parse::<usize>().unwrap());
            }
            if line.is_empty() {
                break;
            }
        }
        seen.lock().unwrap().push(range);
        let (status, extra, body) = match (manner, range) {
            (Manner::NotFound, _) => ("404 Not Found", String::new(), &b"no such file"[..]),
            (Manner::RefuseRanges, Some(_)) => ("416 Range Not Satisfiable", String::new(), &b""[..]),
            (Manner::WrongRanges, Some(_)) => {
                ("206 Partial Content", content_range(0, content.len()), content)
            }
            (Manner::Ranges | Manner::CutAt(_), Some(from)) => {
                ("206 Partial Content", content_range(from, content.len()), &content[from..])
            }
            _ => ("200 OK", String::new(), content),
        };
        let header = format!(
            "HTTP/1.1 {status}\r\nContent-Length: {}\r\n{extra}Connection: close\r\n\r\n",
            body.len()
        );
        let body = match manner {
            Manner::CutAt(len) => &body[..len],
            _ => body,
        };
        // The client may have gone after the header of an answer it does not want.
        let _ = (&connection).write_all(header.as_bytes()).and_then(|()| (&connection).write_all(body));
    }

    fn content_range(from: usize, len: usize) -> String {
        format!("Content-Range: bytes {from}-{}/{len}\r\n", len - 1)
    }

    fn content() -> Vec<u8> {
        (0..300_000u32).map(|idx| (idx * 31 % 253) as u8).collect()
    }

    /// A catalog entry for the content.
    fn remote(file_name: &'static str, content: &[u8]) -> RemoteFile {
        let md5 = format!("{:x}", Md5::digest(content));
        RemoteFile {
            file_name,
            base_url: "http://127.0.0.1:9",
            size: content.len() as u64,
            md5: md5.leak(),
            content_sha256: None,
        }
    }

    struct Case {
        home: tempfile::TempDir,
        server: Server,
        request: FetchRequest,
        files: Vec<RemoteFile>,
    }

    impl Case {
        fn new(manner: Manner) -> Self {
            let home = tempfile::tempdir().unwrap();
            let server = Server::new(content(), manner);
            let mut request = FetchRequest::new(DatasetName::Cifar10, home.path());
            request.base_url = Some(server.base_url.clone());
            Case { home, server, request, files: vec![remote("a.bin", &content())] }
        }

        fn path(&self, file: &str) -> PathBuf {
            self.home.path().join("cifar10").join(file)
        }

        fn write(&self, file: &str, bytes: &[u8]) {
            fs::create_dir_all(self.path("")).unwrap();
            fs::write(self.path(file), bytes).unwrap();
        }

        fn run(&self) -> Result<Vec<PathBuf>, DataError> {
            fetch_files(&self.request, &self.files, &mut |_| {})
        }

        fn message(&self) -> String {
            let message = self.run().unwrap_err().to_string();
            assert!(!message.contains('\n'), "{message}");
            message
                .replace(self.home.path().to_str().unwrap(), "HOME")
                .replace(&self.server.base_url, "SERVER")
        }

        fn assert_complete(&self) {
            assert_eq!(fs::read(self.path("a.bin")).unwrap(), content());
            assert!(!self.path("a.bin.part").exists());
        }
    }

    #[test]
    fn whole_download() {
        let mut case = Case::new(Manner::Ranges);
        case.files.push(remote("b.bin", &content()));
        let mut seen = Vec::new();
        let paths = fetch_files(&case.request, &case.files, &mut |progress| {
            seen.push((progress.file_idx, progress.received, progress.total));
        });
        assert_eq!(paths.unwrap(), [case.path("a.bin"), case.path("b.bin")]);
        case.assert_complete();
        assert_eq!(case.server.ranges(), [None, None]);
        assert_eq!((seen[0], *seen.last().unwrap()), ((0, 0, 300_000), (1, 300_000, 300_000)));
        assert!(seen.is_sorted());

        // Nothing is downloaded again.
        case.run().unwrap();
        assert_eq!(case.server.ranges().len(), 2);
    }

    #[test]
    fn a_partial_file_is_completed_whatever_the_server_does() {
        for (manner, ranges) in [
            (Manner::Ranges, vec![Some(1000)]),
            (Manner::NoRanges, vec![Some(1000)]),
            (Manner::RefuseRanges, vec![Some(1000), None]),
            (Manner::WrongRanges, vec![Some(1000), None]),
        ] {
            let case = Case::new(manner);
            case.write("a.bin.part", &content()[..1000]);
            case.run().unwrap();
            case.assert_complete();
            assert_eq!(case.server.ranges(), ranges, "{manner:?}");
        }
    }

    #[test]
    fn a_complete_partial_file_needs_no_server() {
        let case = Case::new(Manner::NotFound);
        case.write("a.bin.part", &content());
        case.run().unwrap();
        case.assert_complete();
    }

    #[test]
    fn a_cut_connection_is_resumed_by_the_next_call() {
        let case = Case::new(Manner::CutAt(100_000));
        let message = case.message();
        assert_eq!(
            message,
            "download SERVER/a.bin (the connection ended after 100000 of 300000 bytes); run the command again to resume, \
             or put a.bin by hand into HOME/cifar10"
        );
        assert_eq!(fs::read(case.path("a.bin.part")).unwrap(), content()[..100_000]);
        case.run().unwrap_err();
        case.run().unwrap();
        case.assert_complete();
        assert_eq!(case.server.ranges(), [None, Some(100_000), Some(200_000)]);
    }

    #[test]
    fn another_checksum_removes_the_download() {
        let case = Case::new(Manner::Ranges);
        let mut damaged = content()[..1000].to_vec();
        damaged[0] ^= 1;
        case.write("a.bin.part", &damaged);
        let message = case.message();
        let expected = case.files[0].md5;
        assert!(
            message.starts_with(&format!("check HOME/cifar10/a.bin.part: expected md5 {expected}, got ")),
            "{message}"
        );
        assert!(
            message.ends_with("the download has been removed, run the command again to start afresh"),
            "{message}"
        );
        assert!(!case.path("a.bin.part").exists());
        case.run().unwrap();
        case.assert_complete();
        assert_eq!(case.server.ranges(), [Some(1000), None]);
    }

    #[test]
    fn a_file_at_hand_is_never_touched() {
        let case = Case::new(Manner::Ranges);
        case.write("a.bin", b"of the user");
        let message = case.message();
        assert!(message.starts_with("check HOME/cifar10/a.bin: expected md5"), "{message}");
        assert!(message.ends_with("; remove the file and fetch it again"), "{message}");
        assert_eq!(fs::read(case.path("a.bin")).unwrap(), b"of the user");
    }

    #[test]
    fn missing_on_the_server() {
        let case = Case::new(Manner::NotFound);
        assert_eq!(
            case.message(),
            "download SERVER/a.bin (the server answered with status 404); run the command again to resume, or put a.bin \
             by hand into HOME/cifar10"
        );
    }

    #[test]
    fn without_network_the_files_and_their_directory_are_named() {
        let home = tempfile::tempdir().unwrap();
        // A port that was free a moment ago.
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut request = FetchRequest::new(DatasetName::FashionMnist, home.path());
        request.base_url = Some(format!("http://{address}"));
        let message = fetch(&request, &mut |_| {}).unwrap_err().to_string();
        assert!(
            message.starts_with(&format!("download http://{address}/train-images-idx3-ubyte.gz (")),
            "{message}"
        );
        let remedy = format!(
            "; run the command again to resume, or put train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, \
             t10k-images-idx3-ubyte.gz, t10k-labels-idx1-ubyte.gz by hand into {}, or on Debian and Ubuntu `apt-get \
             install dataset-fashion-mnist`",
            home.path().join("fashion-mnist").display()
        );
        assert!(message.ends_with(&remedy), "{message}");
        assert!(!message.contains('\n'), "{message}");
    }

    #[test]
    fn two_downloads_of_one_file_do_not_mix() {
        let case = Case::new(Manner::Ranges);
        case.write("a.bin.part", b"");
        let other = open_part(&case.path("a.bin.part")).unwrap();
        assert_eq!(
            case.message(),
            "download to HOME/cifar10/a.bin.part: another process is writing this file; wait for it or end it"
        );
        drop(other);
        case.run().unwrap();
        case.assert_complete();
    }

    #[test]
    fn data_home_that_cannot_be_made() {
        let case = Case::new(Manner::Ranges);
        fs::write(case.home.path().join("cifar10"), b"a file").unwrap();
        assert_eq!(case.message(), "create HOME/cifar10");
    }

    #[test]
    fn built_in_data_is_not_fetched() {
        let request = FetchRequest::new(DatasetName::Digits, "/nonexistent");
        assert_eq!(fetch(&request, &mut |_| {}).unwrap(), Vec::<PathBuf>::new());
    }
}
