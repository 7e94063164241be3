package main

// How the log leaves the program. The journal here is a socket that this file reads in
// the place of journald, in its own format; the real one is .ci/systemd's.

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// A testJournal is what journald does with what comes: it takes it apart.
type testJournal struct {
	t    *testing.T
	path string
	conn *net.UnixConn
}

func newTestJournal(t *testing.T, path string) *testJournal {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &testJournal{t, path, conn}
}

// record is the next one, by field; "memfd" is set where it came as one.
func (j *testJournal) record() map[string]string {
	j.t.Helper()
	j.conn.SetReadDeadline(time.Now().Add(time.Minute))
	data, oob := make([]byte, 1<<20), make([]byte, 1<<10)
	n, m, _, _, err := j.conn.ReadMsgUnix(data, oob)
	if err != nil {
		j.t.Fatal(err)
	}
	data = data[:n]
	fields := map[string]string{}
	if n == 0 { // by descriptor, as journald takes it: sealed only
		all, err := unix.ParseSocketControlMessage(oob[:m])
		if err != nil || len(all) != 1 {
			j.t.Fatal(all, err)
		}
		fds, err := unix.ParseUnixRights(&all[0])
		if err != nil || len(fds) != 1 {
			j.t.Fatal(fds, err)
		}
		f := os.NewFile(uintptr(fds[0]), "memfd")
		defer f.Close()
		seals, err := unix.FcntlInt(f.Fd(), unix.F_GET_SEALS, 0)
		if want := unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE; err != nil || seals != want {
			j.t.Errorf("seals %#x, %v", seals, err)
		}
		if data, err = io.ReadAll(io.NewSectionReader(f, 0, 1<<20)); err != nil {
			j.t.Fatal(err)
		}
		fields["memfd"] = "yes"
	}
	for len(data) > 0 {
		line, rest, ok := bytes.Cut(data, []byte("\n"))
		if !ok {
			j.t.Fatalf("no end of a field: %q", data)
		}
		name, value, short := strings.Cut(string(line), "=")
		if !short {
			size := binary.LittleEndian.Uint64(rest)
			value, rest = string(rest[8:8+size]), rest[8+size:]
			if rest[0] != '\n' {
				j.t.Fatalf("%s has no end", name)
			}
			rest = rest[1:]
		}
		if _, twice := fields[name]; twice || !regexp.MustCompile(`^[A-Z][A-Z0-9_]*$`).MatchString(name) {
			j.t.Errorf("field %q, twice: %v", name, twice)
		}
		fields[name], data = value, rest
	}
	return fields
}

// journalLogger logs to the socket at path, and to w what that does not take.
func journalLogger(w io.Writer, path string) (*slog.Logger, *journalHandler) {
	h := newJournalHandler("berth", w, slog.LevelDebug, path)
	return slog.New(h), h
}

func TestJournalFields(t *testing.T) {
	j := newTestJournal(t, filepath.Join(t.TempDir(), "socket"))
	var errs bytes.Buffer
	log, h := journalLogger(&errs, j.path)
	for _, tt := range []struct {
		log  func()
		want map[string]string
	}{
		{func() {
			log.Info("transfer", "session", uint64(7), "user", "ann", "addr", "192.0.2.1", "direction", "upload", "path", "/a b", "bytes", int64(3),
				"dur", 1500*time.Millisecond, "result", "ok")
		}, map[string]string{"PRIORITY": "6", "SYSLOG_IDENTIFIER": "berth", "MESSAGE_ID": journalID("transfer upload"), "BERTH_SESSION": "7", "BERTH_USER": "ann",
			"BERTH_ADDR": "192.0.2.1", "BERTH_DIRECTION": "upload", "BERTH_PATH": "/a b", "BERTH_BYTES": "3", "BERTH_DURATION": "1.5", "BERTH_RESULT": "ok",
			"MESSAGE": `msg=transfer session=7 user=ann addr=192.0.2.1 direction=upload path="/a b" bytes=3 dur=1.5s result=ok`}},
		{func() { log.Warn("login failed", "user", "x\nPRIORITY=0\n", "addr", "192.0.2.1") },
			map[string]string{"PRIORITY": "4", "SYSLOG_IDENTIFIER": "berth", "MESSAGE_ID": journalID("login failed"), "BERTH_USER": "x\nPRIORITY=0\n", "BERTH_ADDR": "192.0.2.1",
				"MESSAGE": `msg="login failed" user="x\nPRIORITY=0\n" addr=192.0.2.1`}},
		{func() {
			log.With("user", "ann").Error("odd", "error", errors.New("no"), "at", time.Unix(1, 5), "is", true, "path", "/\xff")
		}, map[string]string{"PRIORITY": "3", "SYSLOG_IDENTIFIER": "berth", "BERTH_USER": "ann", "BERTH_ERROR": "no", "BERTH_AT": "1970-01-01T00:00:01.000000005Z",
			"BERTH_IS": "true", "BERTH_PATH": "/\xff", "MESSAGE": `msg=odd user=ann error=no at=` + time.Unix(1, 5).Format("2006-01-02T15:04:05.000Z07:00") + ` is=true path="/\xff"`}},
		{func() { log.Debug("plain") }, map[string]string{"PRIORITY": "7", "SYSLOG_IDENTIFIER": "berth", "MESSAGE": "msg=plain"}},
	} {
		tt.log()
		got := j.record()
		if fmt.Sprint(got) != fmt.Sprint(tt.want) {
			t.Errorf("got  %q\nwant %q", got, tt.want)
		}
	}
	// More than a datagram can be goes by memfd, and one value is no longer than its bound.
	unix.SetsockoptInt(h.out.fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 0) // the least there is
	big := strings.Repeat("0123456789abcdef", maxJournalValue/16)
	slog.New(h.WithGroup("g")).Info("large", "more", big+"beyond", "user", "ann")
	if rec := j.record(); rec["memfd"] != "yes" || rec["BERTH_G_MORE"] != big || rec["BERTH_G_USER"] != "ann" {
		t.Errorf("large: memfd %q, %d bytes", rec["memfd"], len(rec["BERTH_G_MORE"]))
	}
	if errs.Len() > 0 {
		t.Errorf("on stderr: %q", errs.String())
	}
}

// TestJournalAway: without a journal lines go to stderr, and the journal has them when it
// is there again, also after it was another for a while.
func TestJournalAway(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	var errs syncBuffer
	log, h := journalLogger(&errs, path)
	log.Info("one", "path", "/a\nb")
	log.Warn("two")
	log.Error("three")
	log.Debug("four")
	if got, want := errs.String(), "<6>msg=one path=\"/a\\nb\"\n<4>msg=two\n<3>msg=three\n<7>msg=four\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	for _, message := range []string{"five", "six"} { // the second after journald was started anew
		h.out.next = time.Time{} // journalRetry is over
		j := newTestJournal(t, path)
		log.Info(message)
		if got := j.record()["MESSAGE"]; got != "msg="+message {
			t.Errorf("%s: %q", message, got)
		}
		j.conn.Close()
		os.Remove(path)
	}
	if got := strings.Count(errs.String(), "\n"); got != 4 {
		t.Errorf("%d lines on stderr", got)
	}
}

// manyLost lines are lost where nobody reads: so many that who waited for each of them would take
// minutes, and no machine is that slow who waits for one.
const manyLost = 500

// TestJournalFull: whoever logs waits once for a journal that takes nothing, and no more
// until it goes on. What neither it nor its stream takes is counted.
func TestJournalFull(t *testing.T) {
	j := newTestJournal(t, filepath.Join(t.TempDir(), "socket"))
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	stderr, reader := os.NewFile(uintptr(fds[0]), "stderr"), os.NewFile(uintptr(fds[1]), "reader")
	defer stderr.Close()
	defer reader.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fds[0], &st); err != nil {
		t.Fatal(err)
	}
	if t.Setenv("JOURNAL_STREAM", "1:2"); leadsToJournal(stderr) {
		t.Error("JOURNAL_STREAM of something else was believed")
	}
	if t.Setenv("JOURNAL_STREAM", fmt.Sprintf("%d:%d", st.Dev, st.Ino)); !leadsToJournal(stderr) {
		t.Error("the stream to the journal was not known")
	}
	_, h := journalLogger(&logFile{f: stderr}, j.path)
	limit := newLimitHandler(h, 0)
	log := slog.New(limit)
	start := time.Now()
	n, filler := 0, strings.Repeat("x", 1000)
	for ; limit.limit.lost.Load() < manyLost; n++ {
		if log.Info("line", "n", n, "filler", filler); n > 10_000 {
			t.Fatal("neither the journal nor its stream is ever full")
		}
	}
	if took := time.Since(start); took > manyLost/2*logPatience {
		t.Errorf("it took %v", took)
	}
	// The journal goes on: everything that was kept is in one of the two, and the rest told.
	for rec := j.record(); ; rec = j.record() {
		if rec["BERTH_COUNT"] != "" {
			if rec["MESSAGE"] != fmt.Sprintf(`msg="log lines lost" count=%d`, manyLost) || rec["PRIORITY"] != "4" {
				t.Errorf("%q", rec)
			}
			break
		}
		if limit.limit.lost.Load() > 0 {
			j.record() // makes room for two
			log.Info("again")
		}
	}
	stderr.Close()
	streamed, err := io.ReadAll(reader)
	if err != nil || !bytes.HasPrefix(streamed, []byte("<6>msg=line n=")) {
		t.Errorf("on the stream: %.100q, %v", streamed, err)
	}
}

// forgingNames are what clients call files and themselves to have the log say something.
var forgingNames = []string{
	"/a\nlevel=ERROR msg=forged", "/a\r\n{\"level\":\"ERROR\",\"msg\":\"forged\"}", "/a\u2028msg=forged", "/a\u0085msg=forged", "/a\x85msg=forged", "/\x1b[2Jmsg=forged", "/\u009b2Jmsg=forged",
	`/x" msg=forged y="`, `/x\" msg=forged`, "/x msg=forged", "/\x00", "/\xff\xfe\n", "/\v\f\b\x7f", "\nMESSAGE=msg=forged\nPRIORITY=0", "\n<3>msg=forged",
}

// TestLogForging: whatever a client chose, one event is one line that says what happened.
func TestLogForging(t *testing.T) {
	j := newTestJournal(t, filepath.Join(t.TempDir(), "socket"))
	for _, name := range forgingNames {
		for _, format := range []string{"text", "json", "journal"} {
			var out bytes.Buffer
			log := slog.New(formatHandler("berth", format, slog.LevelInfo, &out))
			log.Info("deleted", "path", name, "error", errors.New(name))
			line := strings.TrimSuffix(out.String(), "\n")
			if out.Len() != len(line)+1 || strings.ContainsFunc(line, func(r rune) bool { return r < ' ' || r >= 0x7f && r <= 0x9f || r == 0x2028 }) {
				t.Errorf("%s: %q", format, out.String())
			}
			if format == "json" {
				var got struct{ Level, Msg, Path string }
				if err := json.Unmarshal(out.Bytes(), &got); err != nil || got.Level != "INFO" || got.Msg != "deleted" {
					t.Errorf("%q: %+v, %v", line, got, err)
				}
			} else if i := strings.Index(line, `msg=deleted path="`); i < 0 || strings.Count(strings.ReplaceAll(line, `\"`, ""), `"`) != 4 {
				t.Errorf("%s: %s", format, line) // the name and the error are quoted, and nothing ends a quote but its end
			}
		}
		log, _ := journalLogger(io.Discard, j.path)
		log.Info("deleted", "path", name)
		if got := j.record(); got["BERTH_PATH"] != name || got["PRIORITY"] != "6" || len(got) != 5 || strings.Contains(got["MESSAGE"], "\n") {
			t.Errorf("%q", got)
		}
	}
}

// --- what strangers may cause ---

// TestLogLimit: of a flood a burst comes through and then log.rate lines a second, the
// rest is counted, and lines of users come through all of it, but for a flood of one's own.
func TestLogLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out syncBuffer
		log := newLogger("berth", logConfig{Format: "text", Level: "info", Rate: 20}, new(slog.LevelVar), &out)
		limit, counted := limitOf(log), 0
		limit.count(func(n int) { counted += n })
		count := func(pattern string) int { return len(regexp.MustCompile(pattern).FindAllString(out.String(), -1)) }
		floods := []func(){
			func() { log.Warn("login failed", "user", "root", "addr", "192.0.2.1") },
			func() { log.Info("refused", "addr", "192.0.2.1", "result", "too many") },
			func() {
				log.Info("refused", "session", 1, "user", "guest", "addr", "192.0.2.1", "verb", "USER", "result", clearText)
			},
			func() {
				log.Info("refused", "session", 1, "addr", "192.0.2.1", "verb", "AUTH", "result", "TLS handshake")
			},
			func() { log.Info("refused", "user", "eve", "verb", "DELE", "result", "not_found") },
		}
		const seconds, each = 15, 200 // a second of each
		for i := range seconds * each {
			for _, flood := range floods {
				flood()
			}
			log.Info("transfer", "user", "ann")
			log.Info("deleted", "user", "eve")
			if i%each == 0 {
				log.Info("refused", "user", "ann", "verb", "DELE")
			}
			time.Sleep(time.Second / each)
		}
		// A burst of ten seconds' worth, and 20 a second for 15 seconds; two floods share one kind.
		const through = 20*logBurst + 20*seconds
		for pattern, want := range map[string]int{`msg="login failed"`: through, "verb=AUTH": through, "msg=refused user=eve": through, `msg=refused addr=|user=guest addr=`: through} {
			if got := count(pattern); got < want-1 || got > want+1 {
				t.Errorf("%s: %d lines, want %d", pattern, got, want)
			}
		}
		if got := count("msg=transfer") + count("msg=deleted") + count("msg=refused user=ann"); got != 2*seconds*each+seconds {
			t.Errorf("%d lines about users", got)
		}
		if got := count(`level=WARN msg="left out" of="login failed" count=\d+\n`); got != 1 {
			t.Errorf("told %d times after 15 s\n", got)
		}
		time.Sleep(leftOutEvery) // the attack is over, and the rest is told
		if got := count(`msg="left out"`); got != 8 {
			t.Errorf("told %d times in all", got)
		}
		told := 0
		for _, m := range regexp.MustCompile(`msg="left out" of=.* count=(\d+)`).FindAllStringSubmatch(out.String(), -1) {
			var n int
			fmt.Sscan(m[1], &n)
			told += n
		}
		if all := len(floods)*seconds*each - count(`msg="login failed"|verb=AUTH|msg=refused addr=|msg=refused user=eve|user=guest addr=`); told != all || counted != all {
			t.Errorf("%d lines are missing; %d were told, and %d counted", all, told, counted)
		}

		// A reload changes it; 0 is no limit. And at the end nothing stays untold.
		before := count("login failed\" user")
		limit.setRate(0)
		for range 1000 {
			floods[0]()
		}
		if got := count("login failed\" user") - before; got != 1000 {
			t.Errorf("without a limit: %d of 1000 lines", got)
		}
		limit.setRate(1)
		for range logBurst + 7 {
			floods[0]()
		}
		limit.tell()
		if !strings.HasSuffix(out.String(), "msg=\"left out\" of=\"login failed\" count=7\n") {
			t.Error("the last line does not tell what was left out at the end")
		}
		time.Sleep(2 * leftOutEvery)
		if got := count(`msg="left out"`); got != 9 {
			t.Errorf("told %d times", got)
		}
	})
}

// TestLogRateReload: the daemon's own limit follows its configuration, and its end tells
// what was left out.
func TestLogRateReload(t *testing.T) {
	b := newFTPBox(t, "", "")
	b.reconfigure(t, "log.rate = 3\n")
	if err := b.srv.reload(); err != nil {
		t.Fatal(err)
	}
	for range 3*logBurst + 4 {
		b.srv.log.Warn("login failed")
	}
	b.wantMetric(t, 4, "berth_log_suppressed_total")
	b.srv.logLimit.tell()
	if log := b.log.String(); strings.Count(log, `msg="login failed"`) != 3*logBurst || !strings.Contains(log, `of="login failed" count=4`) {
		t.Error(log)
	}
	if all := b.srv.recent.list(); len(all) != 2 || all[0].Message != "left out" {
		t.Errorf("the status page tells %v", all)
	}
}

// --- standard error ---

// TestLogPipeUnread: nobody reads the pipe that standard error is, as a pager or a log
// program does that was stopped. Whoever logs waits once, and no more; when it is read
// again, what is missing is told, and no line is torn. The same of a reader that is gone,
// which is no reason to end either.
func TestLogPipeUnread(t *testing.T) {
	for _, format := range []string{"json", "text", "journal"} {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		defer w.Close()
		log := newLogger("berth", logConfig{Format: format, Level: "info"}, new(slog.LevelVar), w)
		limit := limitOf(log).limit
		if h, ok := limit.tells.(*journalHandler); ok { // of a machine that has one
			h.out.socket = ""
		}
		start, n, long := time.Now(), 0, strings.Repeat("x", 5*logChunk/2)
		for ; limit.lost.Load() < manyLost; n++ {
			if log.Info("line", "n", n, "long", long); n > 1000 {
				t.Fatal("the pipe is never full")
			}
		}
		if took := time.Since(start); took > manyLost/2*logPatience {
			t.Errorf("%s: it took %v", format, took)
		}
		var got bytes.Buffer
		r.SetReadDeadline(time.Now().Add(time.Minute))
		if _, err := io.CopyN(&got, r, 1<<15); err != nil { // it is read again
			t.Fatal(err)
		}
		log.Info("again")
		w.Close()
		io.Copy(&got, r)
		whole, again := 0, false
		for line := range strings.Lines(got.String()) {
			switch {
			case strings.Contains(line, long):
				whole++
			case strings.Contains(line, "again"):
				again = true
			case strings.Contains(line, "log lines lost"):
				if !regexp.MustCompile(fmt.Sprintf(`count"?[=:]%d\b`, manyLost)).MatchString(line) {
					t.Errorf("%s: %q", format, line)
				}
				whole += manyLost
			} // else it is the beginning of one that did not fit, on a line of its own
		}
		if whole != n || !again {
			t.Errorf("%s: %d of %d lines came or were told to be missing; the last one: %v", format, whole, n, again)
		}
	}
}

// TestLogNobodyReads: a daemon outlives the program that read its standard error.
func TestLogNobodyReads(t *testing.T) {
	file, _ := writeConfig(t, "listen.control = [\"127.0.0.1:0\"]\nlisten.datagram = []\nlisten.local = []\nlisten.http = []\n")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], "serve", "--config", file)
	cmd.Env, cmd.Stderr = append(os.Environ(), asBerth+"=1"), w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	w.Close()
	r.SetReadDeadline(time.Now().Add(time.Minute))
	log, address := bufio.NewScanner(r), ""
	for address == "" && log.Scan() {
		if _, after, ok := strings.Cut(log.Text(), "control="); ok {
			address = after[:strings.IndexAny(after, `" `)]
		}
	}
	r.Close()
	for range 3 {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(conn, "GET / HTTP/1.0\r\n\r\n") // makes a line
		if said, err := io.ReadAll(conn); err != nil || !bytes.Contains(said, []byte("421 ")) {
			t.Errorf("%q, %v", said, err)
		}
		conn.Close()
	}
	cmd.Process.Signal(os.Interrupt)
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

// --- the formats ---

// TestLogFormats: "auto" is JSON where there is neither the journal nor a terminal, and
// durations are seconds there.
func TestLogFormats(t *testing.T) {
	t.Setenv("JOURNAL_STREAM", "1:2") // inherited from a service, and not ours
	file, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for format, want := range map[string]string{
		"auto":    `^\{"time":"[^"]*","level":"WARN","msg":"m","dur":1\.5,"error":"no"\}\n$`,
		"json":    `^\{"time":"[^"]*","level":"WARN","msg":"m","dur":1\.5,"error":"no"\}\n$`,
		"text":    `^time=\S+ level=WARN msg=m dur=1\.5s error=no\n$`,
		"journal": `^<4>msg=m dur=1\.5s error=no\n$`,
	} {
		var out bytes.Buffer
		newLogger("berth", logConfig{Format: format, Level: "info"}, new(slog.LevelVar), &out).Warn("m", "dur", 1500*time.Millisecond, "error", errors.New("no"))
		if !regexp.MustCompile(want).MatchString(out.String()) {
			t.Errorf("%s: %q", format, out.String())
		}
	}
	if _, ok := formatHandler("berth", "auto", slog.LevelInfo, file).(*slog.JSONHandler); !ok {
		t.Error("a file is not logged to as JSON")
	}
	if h := formatHandler("berth", "auto", slog.LevelInfo, io.Discard); h.Enabled(context.Background(), slog.LevelDebug) {
		t.Error("the level does not hold")
	}
}
