//! Downloading the published files.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ureq::http::{HeaderMap, StatusCode};
use ureq::{Agent, Body};

use crate::error::{Action, ChecksumKind, FetchFailure};
use crate::file_kind::{FileKind, START_LEN};
use crate::locate::expect_file;
use crate::read::open_alone;
use crate::verify::{FileStatus, check_file};
use crate::{DataError, DatasetName, RemoteFile};

/// How long a server may stay silent.
const PATIENCE: Duration = Duration::from_secs(60);

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
/// kept when the connection ends, so that the next call resumes it. It is also kept if the server answers with something
/// else, such as a web page, and no more is ever received than the file may have. A complete download with another
/// checksum than the published one is removed, so that the next call starts afresh. For built-in data sets nothing
/// happens.
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
    fetch_files(request, request.name.info().files, PATIENCE, progress)
}

fn fetch_files(
    request: &FetchRequest,
    files: &[RemoteFile],
    patience: Duration,
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
        let download = Download { file, url: format!("{base_url}/{}", file.file_name), dir: &dir, patience };
        let path = download.run(&mut received).map_err(|error| match error {
            DownloadError::Data(error) => error,
            DownloadError::Failure(failure) => DataError::Fetch {
                name: request.name,
                url: download.url.clone(),
                failure,
                kept: download.kept(),
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
    patience: Duration,
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
        if expect_file(&path)? {
            self.check(&path, Existing::Keep)?;
            progress(self.file.size, self.file.size);
            return Ok(path);
        }
        let part = self.part();
        let mut out = open_part(&part)?;
        let io_error = |action| move |e| DownloadError::Data(DataError::io(&self.part(), action, e));
        let at_hand = out.seek(SeekFrom::End(0)).map_err(io_error(Action::Write))?;
        // A download that was interrupted between its last byte and the rename is complete already.
        if at_hand != self.file.size
            && let Err(error) = self.download(&mut out, at_hand, progress)
        {
            // Nothing empty is left behind. That it cannot be removed is no worse than why the download failed.
            if self.kept() == 0 {
                let _ = fs::remove_file(&part);
            }
            return Err(error);
        }
        match out.sync_all() {
            // Some file systems have no such thing.
            Err(e) if !matches!(e.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => {
                return Err(io_error(Action::Write)(e));
            }
            _ => {}
        }
        self.check(&part, Existing::Remove)?;
        fs::rename(&part, &path).map_err(io_error(Action::Rename))?;
        Ok(path)
    }

    /// Where the file is written until it is complete.
    fn part(&self) -> PathBuf {
        self.dir.join(format!("{}.part", self.file.file_name))
    }

    /// Bytes of it that there are.
    fn kept(&self) -> u64 {
        fs::metadata(self.part()).map_or(0, |metadata| metadata.len())
    }

    /// The most bytes that are received. What is judged by its content may be compressed less well, or not at all.
    fn limit(&self) -> u64 {
        match self.file.checksum {
            ChecksumKind::FileSha256 => self.file.size,
            ChecksumKind::ContentSha256 => self.file.size.saturating_mul(8),
        }
    }

    /// Completes the partial file, of which `at_hand` bytes are there. It keeps these unless the server is seen to send
    /// the same file from its start.
    fn download(
        &self,
        out: &mut File,
        at_hand: u64,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(), DownloadError> {
        let mut response = self.request(at_hand)?;
        let is_resumed = |response: &ureq::http::Response<Body>| {
            response.status() == StatusCode::PARTIAL_CONTENT
                && range_start(response.headers()) == Some(at_hand)
        };
        // The partial file is longer than the file of the server, the server objects to the range, or it sends another
        // part than asked for: start over.
        let refused = [StatusCode::RANGE_NOT_SATISFIABLE, StatusCode::PARTIAL_CONTENT];
        if at_hand > 0 && refused.contains(&response.status()) && !is_resumed(&response) {
            response = self.request(0)?;
        }
        let is_resumed = is_resumed(&response);
        if !is_resumed && response.status() != StatusCode::OK {
            return Err(FetchFailure::Status(response.status().as_u16()).into());
        }
        if is_web_page(response.headers()) {
            return Err(FetchFailure::NotTheFile(FileKind::WebPage).into());
        }

        let begin = if is_resumed { at_hand } else { 0 };
        let in_range = range_total(response.headers()).filter(|_| is_resumed);
        let body = response.into_body();
        let announced = body.content_length().map(|length| begin.saturating_add(length)).or(in_range);
        let limit = announced.map_or(self.limit(), |length| length.min(self.limit()));
        let mut body = body.into_reader();
        let mut buffer = vec![0; 1 << 16];
        let mut n_read = read_body(&mut body, &mut buffer[..START_LEN])?;
        if !is_resumed {
            self.expect_start(&buffer[..n_read])?;
        }
        if let Some(got) = announced.filter(|&got| got != self.file.size && !self.may_have_length(got)) {
            return Err(FetchFailure::WrongLength { expected: self.file.size, got }.into());
        }
        let mut transfer = Transfer {
            path: self.part(),
            out,
            received: begin,
            kept: at_hand,
            is_announced: announced == Some(self.file.size),
        };
        let total = announced.unwrap_or(self.file.size);
        progress(begin, total);
        while n_read > 0 {
            if transfer.received + n_read as u64 > limit {
                transfer.keep()?;
                return Err(FetchFailure::TooLong { expected: self.file.size, limit }.into());
            }
            transfer.receive(&buffer[..n_read])?;
            progress(transfer.received, total);
            n_read = read_body(&mut body, &mut buffer)?;
        }
        if transfer.received < total {
            return Err(FetchFailure::CutShort { expected: total, got: transfer.received }.into());
        }
        // The partial file may have been longer.
        transfer.kept = transfer.received;
        transfer.keep()
    }

    /// Whether a server may have the file in another length: compressed in another way, or not at all.
    fn may_have_length(&self, length: u64) -> bool {
        self.file.checksum == ChecksumKind::ContentSha256 && length <= self.limit()
    }

    /// Refuses what does not begin as the file.
    fn expect_start(&self, start: &[u8]) -> Result<(), FetchFailure> {
        let kind = FileKind::of(start);
        let is_right = match kind {
            FileKind::Gzip => true,
            FileKind::Idx => self.file.checksum == ChecksumKind::ContentSha256,
            FileKind::Unknown => !self.file.file_name.ends_with(".gz"),
            _ => false,
        };
        if is_right { Ok(()) } else { Err(FetchFailure::NotTheFile(kind)) }
    }

    fn request(&self, at_hand: u64) -> Result<ureq::http::Response<Body>, FetchFailure> {
        // Compression by the server would make byte ranges and checksums those of another file.
        let mut request =
            agent(&self.url, self.patience).get(&self.url).header("Accept-Encoding", "identity");
        if at_hand > 0 {
            request = request.header("Range", format!("bytes={at_hand}-"));
        }
        request.call().map_err(|e| FetchFailure::Connection(e.into()))
    }

    fn check(&self, path: &Path, existing: Existing) -> Result<(), DataError> {
        let removed = existing == Existing::Remove;
        let remove = || match removed {
            true => fs::remove_file(path).map_err(|e| DataError::io(path, Action::Remove, e)),
            false => Ok(()),
        };
        match check_file(path, self.file) {
            Ok(FileStatus::Differs { kind, expected, got }) => {
                remove()?;
                Err(DataError::ChecksumMismatch { path: path.to_owned(), kind, expected, got, removed })
            }
            Ok(_) => Ok(()),
            Err(damaged @ DataError::CorruptGzip { .. }) => {
                remove()?;
                Err(damaged)
            }
            Err(error) => Err(error),
        }
    }
}

/// A body on its way into the partial file.
struct Transfer<'a> {
    path: PathBuf,
    out: &'a mut File,
    /// Bytes of the file received, with those that were at hand.
    received: u64,
    /// Bytes of the partial file that are of an earlier answer.
    kept: u64,
    /// Whether the server announced the length of the published file.
    is_announced: bool,
}

impl Transfer<'_> {
    /// Takes the next bytes. Those that are at hand already are compared; with others, the partial file is begun anew if
    /// the length says that the server has the published file, and left alone if not.
    fn receive(&mut self, bytes: &[u8]) -> Result<(), DownloadError> {
        let write_error = |e| DownloadError::Data(DataError::io(&self.path, Action::Write, e));
        let n_known = self.kept.saturating_sub(self.received).min(bytes.len() as u64) as usize;
        let (known, new) = bytes.split_at(n_known);
        self.out.seek(SeekFrom::Start(self.received)).map_err(write_error)?;
        let mut at_hand = vec![0; n_known];
        self.out.read_exact(&mut at_hand).map_err(write_error)?;
        if let Some(idx) = known.iter().zip(&at_hand).position(|(a, b)| a != b) {
            let at = self.received + idx as u64;
            if !self.is_announced {
                return Err(FetchFailure::OtherFile { at }.into());
            }
            self.out.set_len(at).and_then(|()| self.out.seek(SeekFrom::Start(at))).map_err(write_error)?;
            self.out.write_all(&bytes[idx..]).map_err(write_error)?;
            self.kept = 0;
        } else {
            self.out.write_all(new).map_err(write_error)?;
        }
        self.received += bytes.len() as u64;
        Ok(())
    }

    /// Cuts the partial file to what is kept.
    fn keep(&self) -> Result<(), DownloadError> {
        self.out
            .set_len(self.kept)
            .map_err(|e| DownloadError::Data(DataError::io(&self.path, Action::Write, e)))
    }
}

/// Reads until the buffer is full or the body ends; a connection that ends is the end of the body.
fn read_body(body: &mut impl Read, buffer: &mut [u8]) -> Result<usize, FetchFailure> {
    let mut filled = 0;
    while filled < buffer.len() {
        match body.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => break,
            // What came before is kept: the next call meets the error again.
            Err(_) if filled > 0 => break,
            Err(e) => return Err(FetchFailure::Connection(e.into())),
        }
    }
    Ok(filled)
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
    open_alone(part)?.ok_or_else(|| DataError::FetchInProgress { path: part.to_owned() })
}

fn agent(url: &str, patience: Duration) -> Agent {
    let config = Agent::config_builder()
        .http_status_as_error(false)
        .timeout_resolve(Some(Duration::from_secs(30)))
        .timeout_connect(Some(Duration::from_secs(30)))
        .timeout_recv_response(Some(patience))
        .timeout_per_read(Some(patience))
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

/// The length of the whole file of a `Content-Range: bytes 5-9/10` header, where it is not `*`.
fn range_total(headers: &HeaderMap) -> Option<u64> {
    headers.get("content-range")?.to_str().ok()?.rsplit('/').next()?.trim().parse().ok()
}

/// Whether a server says that it sends a web page.
fn is_web_page(headers: &HeaderMap) -> bool {
    let content_type = headers.get("content-type").and_then(|value| value.to_str().ok()).unwrap_or_default();
    content_type.trim_start().to_ascii_lowercase().starts_with("text/html")
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::net::{TcpListener, TcpStream};
    use std::sync::{Arc, Mutex};
    use std::thread;

    use sha2::{Digest, Sha256};

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
        /// A web page with status 200, called one or not.
        WebPage { is_called: bool },
        /// Ranges are served, and the answer never ends.
        Endless,
        /// Every answer is the whole file, and goes on with other bytes.
        EndlessFromStart,
        /// A whole file of another length.
        OtherLength,
        /// A whole file of the same length, or of one that is not announced, with other bytes.
        OtherBytes { is_announced: bool },
        /// An address that sends back to itself.
        Loop,
        /// No answer.
        Silent,
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
        let page = b"<!DOCTYPE html><html>Please log in</html>";
        let other: Vec<u8> = content.iter().map(|byte| byte ^ 1).collect();
        let longer = [content, content].concat();
        let (status, extra, body) = match (manner, range) {
            // Until the client gives up.
            (Manner::Silent, _) => return drop((&connection).read(&mut [0])),
            (Manner::NotFound, _) => ("404 Not Found", String::new(), &b"no such file"[..]),
            (Manner::WebPage { is_called: true }, _) => {
                ("200 OK", "Content-Type: text/html\r\n".into(), &page[..])
            }
            (Manner::WebPage { is_called: false }, _) => ("200 OK", String::new(), &page[..]),
            (Manner::OtherLength, _) => ("200 OK", String::new(), longer.as_slice()),
            (Manner::OtherBytes { .. }, _) => ("200 OK", String::new(), other.as_slice()),
            (Manner::Loop, _) => ("302 Found", "Location: /data/a.gz\r\n".into(), &b""[..]),
            (Manner::RefuseRanges, Some(_)) => ("416 Range Not Satisfiable", String::new(), &b""[..]),
            (Manner::WrongRanges, Some(_)) => {
                ("206 Partial Content", content_range(0, content.len()), content)
            }
            (Manner::Ranges | Manner::CutAt(_) | Manner::Endless, Some(from)) => {
                ("206 Partial Content", content_range(from, content.len()), &content[from..])
            }
            _ => ("200 OK", String::new(), content),
        };
        let is_endless = matches!(manner, Manner::Endless | Manner::EndlessFromStart);
        let length = match is_endless || manner == (Manner::OtherBytes { is_announced: false }) {
            true => String::new(),
            false => format!("Content-Length: {}\r\n", body.len()),
        };
        let header = format!("HTTP/1.1 {status}\r\n{length}{extra}Connection: close\r\n\r\n");
        let body = match manner {
            Manner::CutAt(len) => &body[..len],
            _ => body,
        };
        // The client may have gone after the header of an answer it does not want.
        let mut sent =
            (&connection).write_all(header.as_bytes()).and_then(|()| (&connection).write_all(body));
        while is_endless && sent.is_ok() {
            sent = (&connection).write_all(&[7; 1 << 12]);
        }
    }

    fn content_range(from: usize, len: usize) -> String {
        format!("Content-Range: bytes {from}-{}/{len}\r\n", len - 1)
    }

    fn content() -> Vec<u8> {
        let rest = (0..299_998u32).map(|idx| (idx * 31 % 253) as u8);
        [0x1f, 0x8b].into_iter().chain(rest).collect()
    }

    /// A catalog entry for the content.
    fn remote(file_name: &'static str, content: &[u8]) -> RemoteFile {
        let sha256 = format!("{:x}", Sha256::digest(content));
        RemoteFile {
            file_name,
            base_url: "http://127.0.0.1:9",
            size: content.len() as u64,
            checksum: ChecksumKind::FileSha256,
            sha256: sha256.leak(),
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
            Case { home, server, request, files: vec![remote("a.gz", &content())] }
        }

        fn path(&self, file: &str) -> PathBuf {
            self.home.path().join("cifar10").join(file)
        }

        fn write(&self, file: &str, bytes: &[u8]) {
            fs::create_dir_all(self.path("")).unwrap();
            fs::write(self.path(file), bytes).unwrap();
        }

        fn run(&self) -> Result<Vec<PathBuf>, DataError> {
            fetch_files(&self.request, &self.files, PATIENCE, &mut |_| {})
        }

        fn message(&self) -> String {
            let message = self.run().unwrap_err().to_string();
            assert!(!message.contains('\n'), "{message}");
            message
                .replace(self.home.path().to_str().unwrap(), "HOME")
                .replace(&self.server.base_url, "SERVER")
        }

        fn assert_complete(&self) {
            assert_eq!(fs::read(self.path("a.gz")).unwrap(), content());
            assert!(!self.path("a.gz.part").exists());
        }
    }

    #[test]
    fn whole_download() {
        let mut case = Case::new(Manner::Ranges);
        case.files.push(remote("b.gz", &content()));
        let mut seen = Vec::new();
        let paths = fetch_files(&case.request, &case.files, PATIENCE, &mut |progress| {
            seen.push((progress.file_idx, progress.received, progress.total));
        });
        assert_eq!(paths.unwrap(), [case.path("a.gz"), case.path("b.gz")]);
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
            case.write("a.gz.part", &content()[..1000]);
            case.run().unwrap();
            case.assert_complete();
            assert_eq!(case.server.ranges(), ranges, "{manner:?}");
        }
    }

    #[test]
    fn a_complete_partial_file_needs_no_server() {
        let case = Case::new(Manner::NotFound);
        case.write("a.gz.part", &content());
        case.run().unwrap();
        case.assert_complete();
    }

    #[test]
    fn a_cut_connection_is_resumed_by_the_next_call() {
        let case = Case::new(Manner::CutAt(100_000));
        let message = case.message();
        assert_eq!(
            message,
            "download SERVER/a.gz (the connection ended after 100000 of 300000 bytes); run the command again to resume \
             after the 100000 bytes that are kept, or put a.gz by hand into HOME/cifar10"
        );
        assert_eq!(fs::read(case.path("a.gz.part")).unwrap(), content()[..100_000]);
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
        case.write("a.gz.part", &damaged);
        let message = case.message();
        let expected = case.files[0].sha256;
        assert!(
            message.starts_with(&format!("check HOME/cifar10/a.gz.part: expected sha256 {expected}, got ")),
            "{message}"
        );
        assert!(
            message.ends_with("the download has been removed, run the command again to start afresh"),
            "{message}"
        );
        assert!(!case.path("a.gz.part").exists());
        case.run().unwrap();
        case.assert_complete();
        assert_eq!(case.server.ranges(), [Some(1000), None]);
    }

    #[test]
    fn a_file_at_hand_is_never_touched() {
        let case = Case::new(Manner::Ranges);
        case.write("a.gz", b"of the user");
        let message = case.message();
        assert!(message.starts_with("check HOME/cifar10/a.gz: expected sha256"), "{message}");
        assert!(message.ends_with("; remove the file and fetch it again"), "{message}");
        assert_eq!(fs::read(case.path("a.gz")).unwrap(), b"of the user");
    }

    #[test]
    fn missing_on_the_server() {
        let case = Case::new(Manner::NotFound);
        assert_eq!(
            case.message(),
            "download SERVER/a.gz (the server answered with status 404); run the command again, or put a.gz by \
             hand into HOME/cifar10"
        );
        assert_eq!(fs::read_dir(case.path("")).unwrap().count(), 0, "nothing empty is left");
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
            "; run the command again, or put train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, \
             t10k-images-idx3-ubyte.gz, t10k-labels-idx1-ubyte.gz by hand into {}, or on Debian and Ubuntu `apt-get \
             install dataset-fashion-mnist`",
            home.path().join("fashion-mnist").display()
        );
        assert!(message.ends_with(&remedy), "{message}");
        assert!(!message.contains('\n'), "{message}");
    }

    /// What another answer than the file does not touch: the partial file of before.
    #[test]
    fn a_partial_file_is_kept_from_other_answers() {
        let start = content()[..1000].to_vec();
        for (manner, reason) in [
            (Manner::WebPage { is_called: true }, "the server answered with a web page, not with the file"),
            (Manner::WebPage { is_called: false }, "the server answered with a web page, not with the file"),
            (Manner::NotFound, "the server answered with status 404"),
            (Manner::Endless, "the server still sends after 300000 bytes, the file has 300000"),
            (Manner::EndlessFromStart, "the server still sends after 300000 bytes, the file has 300000"),
            (Manner::OtherLength, "the server announces 600000 bytes, the file has 300000"),
            (
                Manner::OtherBytes { is_announced: false },
                "the server answered with data of an unknown kind, not with the file",
            ),
        ] {
            let case = Case::new(manner);
            case.write("a.gz.part", &start);
            assert_eq!(
                case.message(),
                format!(
                    "download SERVER/a.gz ({reason}); run the command again to resume after the 1000 bytes that are kept, \
                     or put a.gz by hand into HOME/cifar10"
                ),
                "{manner:?}"
            );
            assert_eq!(fs::read(case.path("a.gz.part")).unwrap(), start, "{manner:?}");
            // With nothing at hand, nothing is left behind.
            fs::remove_file(case.path("a.gz.part")).unwrap();
            let message = case.message();
            assert!(
                message.contains("; run the command again, or put a.gz by hand"),
                "{manner:?}: {message}"
            );
            assert_eq!(fs::read_dir(case.path("")).unwrap().count(), 0, "{manner:?}");
        }
    }

    /// A server that knows no ranges sends what is at hand again; it is compared.
    #[test]
    fn another_file_does_not_replace_a_partial_one() {
        let mut start = content()[..1000].to_vec();
        start[700] ^= 1;
        let case = Case::new(Manner::EndlessFromStart);
        case.write("a.gz.part", &start);
        let message = case.message();
        assert!(
            message.contains(
                "differs at byte 700 from the partial download: remove that if the server is right); run"
            ),
            "{message}"
        );
        assert_eq!(fs::read(case.path("a.gz.part")).unwrap(), start);
        // What announces the length of the published file is taken for it.
        let case = Case::new(Manner::NoRanges);
        case.write("a.gz.part", &start);
        case.run().unwrap();
        case.assert_complete();
        // A partial file that is too long is cut.
        let case = Case::new(Manner::RefuseRanges);
        case.write("a.gz.part", &[content(), vec![1; 5000]].concat());
        case.run().unwrap();
        case.assert_complete();
    }

    #[test]
    fn a_server_without_an_answer_is_given_up() {
        let case = Case::new(Manner::Loop);
        let message = case.message();
        assert!(message.contains("redirect"), "{message}");
        let case = Case::new(Manner::Silent);
        let patience = Duration::from_millis(200);
        let error = fetch_files(&case.request, &case.files, patience, &mut |_| {}).unwrap_err();
        assert!(
            matches!(error, DataError::Fetch { failure: FetchFailure::Connection(_), kept: 0, .. }),
            "{error}"
        );
        assert!(error.to_string().contains("timeout"), "{error}");
    }

    /// A file whose content is known may be stored in another way on another server.
    #[test]
    fn content_may_be_compressed_otherwise() {
        let idx = [&[0, 0, 8, 1, 0, 0, 0x13, 0x88][..], &[3; 5000]].concat();
        let mut case = Case::new(Manner::NoRanges);
        case.server = Server::new(idx.clone(), Manner::NoRanges);
        case.request.base_url = Some(case.server.base_url.clone());
        case.files =
            vec![RemoteFile { checksum: ChecksumKind::ContentSha256, size: 1000, ..remote("a.gz", &idx) }];
        case.run().unwrap();
        assert_eq!(fs::read(case.path("a.gz")).unwrap(), idx);
        fs::remove_file(case.path("a.gz")).unwrap();
        // A range says where the file ends, whatever a file of this kind may have.
        let ranges = Server::new(idx.clone(), Manner::Endless);
        case.request.base_url = Some(ranges.base_url.clone());
        case.write("a.gz.part", &idx[..700]);
        let message = case.message();
        assert!(
            message.contains("(the server still sends after 5008 bytes, the file has 1000)"),
            "{message}"
        );
        assert_eq!(fs::read(case.path("a.gz.part")).unwrap(), idx[..700]);
        fs::remove_file(case.path("a.gz.part")).unwrap();

        case.request.base_url = Some(case.server.base_url.clone());
        case.files[0].size = 600;
        assert!(
            case.message().contains("(the server announces 5008 bytes, the file has 600)"),
            "{}",
            case.message()
        );
    }

    #[cfg(unix)]
    #[test]
    fn only_regular_files_are_written() {
        for name in ["a.gz", "a.gz.part"] {
            let case = Case::new(Manner::Ranges);
            fs::create_dir_all(case.path("")).unwrap();
            assert!(std::process::Command::new("mkfifo").arg(case.path(name)).status().unwrap().success());
            let message = case.message();
            assert!(message.contains(&format!("{name}: it is a FIFO, not a regular file")), "{message}");
        }
    }

    #[test]
    fn two_downloads_of_one_file_do_not_mix() {
        let case = Case::new(Manner::Ranges);
        case.write("a.gz.part", b"");
        let other = open_part(&case.path("a.gz.part")).unwrap();
        assert_eq!(
            case.message(),
            "download to HOME/cifar10/a.gz.part: another process is writing this file; wait for it or end it"
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
