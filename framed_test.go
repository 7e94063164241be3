package main

// Sessions that speak frames, seen from outside: a client for tests, the player of
// testdata/frames, and what is about order and time: first frames behind FRAM, frames
// out of place, pipelining, X and P while something runs, idle and ended sessions. What
// each request does is in requests_test.go, the codec by itself in frame_test.go.

import (
	"bufio"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// --- a client ---

// frameClient is an ftpClient whose session speaks frames.
type frameClient struct {
	*ftpClient
}

// frameReply is one answer.
type frameReply struct {
	Code   int             `json:"code"`
	Text   string          `json:"text"`
	Reason string          `json:"reason"`
	ID     json.RawMessage `json:"id"`
	Size   *int64          `json:"size"`
	Offset *int64          `json:"offset"`
	Have   *int64          `json:"have"`
	Left   *int64          `json:"left"`
	SHA256 string          `json:"sha256"`
	MTime  string          `json:"mtime"`
	Mode   string          `json:"mode"`
	raw    string
}

// outcome is all that came for one request.
type outcome struct {
	opening *frameReply // 1xx; nil: none
	frameReply
	data   []byte
	stderr []byte
	ends   []string    // payloads of F
	other  []seenFrame // P and M
}

// field is a field of the final answer, as its JSON.
func (o *outcome) field(name string) string {
	var all map[string]json.RawMessage
	json.Unmarshal([]byte(o.raw), &all)
	return string(all[name])
}

// frames goes over to frames.
func (f *ftpClient) frames() *frameClient {
	f.t.Helper()
	f.cmd("FRAM 1", "200 *")
	return &frameClient{f}
}

// dialFrames is a framed session without login.
func (b *ftpBox) dialFrames(t testing.TB) *frameClient {
	t.Helper()
	f := b.dial(t)
	f.want("220 *")
	return f.frames()
}

// enter is one that is logged in, as ann unless another name is given.
func (f *frameClient) enter(name ...string) *frameClient {
	f.t.Helper()
	user := append(name, "ann")[0]
	f.do(`{"do":"login","user":"`+user+`","password":"secret"}`, 230, "")
	return f
}

// frame sends one.
func (f *frameClient) frame(t frameType, payload string) {
	f.t.Helper()
	f.send(string(appendFrame(nil, t, []byte(payload))))
}

// take reads one frame.
func (f *frameClient) take(within time.Duration) (frameType, []byte, error) {
	f.conn.SetReadDeadline(time.Now().Add(within))
	var h [frameHeader]byte
	if _, err := io.ReadFull(f.r, h[:]); err != nil {
		return 0, nil, err
	}
	t, n, err := parseHeader(h[:])
	if err != nil {
		return t, nil, err
	}
	p := make([]byte, n)
	_, err = io.ReadFull(f.r, p)
	return t, p, err
}

// next reads a frame, which must come.
func (f *frameClient) next() (frameType, string) {
	f.t.Helper()
	t, p, err := f.take(replyTime)
	if err != nil {
		f.fatalf("want a frame: %v", err)
	}
	return t, string(p)
}

// wantFrame reads a frame and compares; * in payload stands for anything.
func (f *frameClient) wantFrame(t frameType, payload string) string {
	f.t.Helper()
	got, p := f.next()
	if got != t || !wildcard(payload, p) {
		f.fatalf("got  %s %.300q\nwant %s %.300q", got, p, t, payload)
	}
	return p
}

// rest reads up to the final answer of a request.
func (f *frameClient) rest() *outcome {
	f.t.Helper()
	o := &outcome{}
	for {
		t, p := f.next()
		switch t {
		case frameAnswer:
			var a frameReply
			if err := json.Unmarshal([]byte(p), &a); err != nil {
				f.fatalf("answer %.300q: %v", p, err)
			}
			a.raw = p
			if a.Code >= 200 {
				o.frameReply = a
				return o
			}
			if o.opening != nil || a.Code < 100 {
				f.fatalf("answer %.300q behind %.300q", p, o.opening.raw)
			}
			o.opening = &a
		case frameData:
			o.data = append(o.data, p...)
		case frameStderr:
			o.stderr = append(o.stderr, p...)
		case frameEnd:
			o.ends = append(o.ends, p)
		case framePing, frameMessage:
			o.other = append(o.other, seenFrame{kind: t, payload: p})
		default:
			f.fatalf("frame of type %s", t)
		}
	}
}

// wantEnd is rest with a code and, if not empty, a reason that must be.
func (f *frameClient) wantEnd(code int, reason string) *outcome {
	f.t.Helper()
	o := f.rest()
	if o.Code != code || o.Reason != reason {
		f.fatalf("got  %s\nwant %d %q", o.raw, code, reason)
	}
	return o
}

// do sends one request and reads what comes, to the final answer.
func (f *frameClient) do(request string, code int, reason string) *outcome {
	f.t.Helper()
	was := f.where
	f.where += fmt.Sprintf("%.200s: ", request)
	f.frame(frameRequest, request)
	o := f.wantEnd(code, reason)
	f.where = was
	return o
}

// hexSum is a digest as frames carry it.
func hexSum[T string | []byte](data T) string {
	s := sha256.Sum256([]byte(data))
	return hex.EncodeToString(s[:])
}

// quotedJSON is a text as a JSON string.
func quotedJSON(s string) string { return string(encodeJSON(s)) }

// upload sends a put with data and its digest; more are fields of the request, each with
// a comma in front.
func (f *frameClient) upload(name, data, more string) {
	f.t.Helper()
	f.frame(frameRequest, fmt.Sprintf(`{"do":"put","path":%s%s}`, quotedJSON(name), more))
	f.pour(data)
	f.frame(frameEnd, fmt.Sprintf(`{"size":%d,"sha256":"%s"}`, len(data), hexSum(data)))
}

// pour sends data as D frames.
func (f *frameClient) pour(data string) {
	f.t.Helper()
	for len(data) > 0 {
		n := min(len(data), maxFrame)
		f.frame(frameData, data[:n])
		data = data[n:]
	}
}

// put stores a file, which must succeed.
func (f *frameClient) put(name, data, more string) *outcome {
	f.t.Helper()
	f.upload(name, data, more)
	o := f.wantEnd(226, "")
	if o.opening == nil || *o.Size != int64(len(data))+*o.opening.Offset {
		f.fatalf("put %s: %s", name, o.raw)
	}
	return o
}

// get fetches what must be there and agree with its own digest.
func (f *frameClient) get(request string) string {
	f.t.Helper()
	o := f.do(request, 226, "")
	want := fmt.Sprintf(`{"size":%d,"sha256":"%s"}`, len(o.data), hexSum(o.data))
	if len(o.ends) != 1 || o.ends[0] != want {
		f.fatalf("%s: F %q; want %q", request, o.ends, want)
	}
	return string(o.data)
}

// fetchFile gets a whole file.
func (f *frameClient) fetchFile(name string) string {
	f.t.Helper()
	return f.get(`{"do":"get","path":` + quotedJSON(name) + `}`)
}

// violates reads the answer to what no client sends, and the end of the connection.
func (f *frameClient) violates(code int, reason, text string) {
	f.t.Helper()
	o := f.wantEnd(code, reason)
	if !wildcard(text+" The connection is closed.", o.Text) {
		f.fatalf("got  %q\nwant %q", o.Text, text)
	}
	f.ended()
}

// ended reads the end of the connection.
func (f *frameClient) ended() {
	f.t.Helper()
	if t, p, err := f.take(replyTime); err != io.EOF {
		f.fatalf("want the end of the connection, got %s %.200q, %v", t, p, err)
	}
}

// wantMetric waits until a sum of samples is as it should be: some are counted behind the
// answer, and the end of a session behind the connection's.
func (b *ftpBox) wantMetric(t testing.TB, want float64, name string, labels ...string) {
	t.Helper()
	got := b.metric(t, name, labels...)
	for range 100 {
		if got == want {
			return
		}
		time.Sleep(time.Millisecond) // in a bubble: until the server has nothing left to do
		got = b.metric(t, name, labels...)
	}
	t.Errorf("%s%v is %v; want %v", name, labels, got, want)
}

// --- golden sessions ---

// A golden session of testdata/frames is a transcript (proto_test.go) until the line
// FRAM 1; from there on C and S are frames:
//
//	login                      greeting, FRAM 1, and the request login as ann
//	C> R {"do":"list"}         a frame; JSON is as it is, all else has Go's escapes
//	C+ P x                     a frame that goes out in one segment with the next C
//	C1 R {"do":"list"}         a frame, byte by byte
//	C# 00000002 "R{}"  # why   bytes: hexadecimal digits in any grouping, and strings
//	S> A {"code":200,*}        the next frame from the server; * is anything
//	S> D @random:1MiB          the content of as many D frames as it takes
//	S# 00000002 "P{}"          bytes exactly
//	late                       the server ends what it does before the next step
//
// Besides these: file, dir, nofile, wait, quiet, closed, close, log, nolog, as there.
type goldenPlayer struct {
	t      *testing.T
	b      *ftpBox
	c      *frameClient
	queued string // C+
	framed bool   // FRAM 1 was sent
	heard  bool   // and answered
	ended  bool
}

// frameStepBytes is what a C step sends once frames are spoken; ok is false for all
// other steps, and lines.
func frameStepBytes(t testing.TB, st transcriptStep) (b []byte, ok bool) {
	switch st.verb {
	case "C#":
		b, err := annotatedHex(st.text)
		if err != nil {
			t.Fatalf("line %d: %v", st.n, err)
		}
		return b, true
	case "C>", "C+", "C1":
		kind, payload, _ := strings.Cut(st.text, " ")
		if len(kind) != 1 {
			return nil, false // FRAM 1 and what is before it
		}
		text, err := framePayload(kind, payload)
		if err != nil {
			t.Fatalf("line %d: %v", st.n, err)
		}
		return appendFrame(nil, frameType(kind[0]), []byte(text)), true
	}
	return nil, false
}

func framePayload(kind, s string) (string, error) {
	if strings.HasPrefix(s, "{") && kind != "D" && kind != "P" {
		return s, nil
	}
	return transcriptContent(s)
}

// annotatedHex reads digits and strings; # begins a comment.
func annotatedHex(s string) (b []byte, err error) {
	for s = strings.TrimSpace(s); s != ""; s = strings.TrimSpace(s) {
		switch {
		case s[0] == '#':
			return b, nil
		case s[0] == '"':
			quoted, err := strconv.QuotedPrefix(s)
			if err != nil {
				return nil, err
			}
			text, _ := strconv.Unquote(quoted)
			b, s = append(b, text...), s[len(quoted):]
		default:
			word, _, _ := strings.Cut(s, " ")
			part, err := hex.DecodeString(word)
			if err != nil {
				return nil, err
			}
			b, s = append(b, part...), s[len(word):]
		}
	}
	return b, nil
}

func TestGoldenFrames(t *testing.T) {
	files, err := filepath.Glob("testdata/frames/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no golden frames", err)
	}
	for _, file := range files {
		tr := readTranscript(t, file)
		t.Run(strings.TrimSuffix(tr.name, ".txt"), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := &goldenPlayer{t: t, b: newFTPBox(t, tr.config, tr.user)}
				for _, st := range tr.steps {
					p.play(tr, st)
				}
				if !p.ended {
					p.c.where = tr.name + ": at the end: "
					p.c.quiet()
					p.c.bare.Close()
				}
				<-p.c.over
			})
		})
	}
}

func (p *goldenPlayer) play(tr *transcript, st transcriptStep) {
	t := p.t
	t.Helper()
	where := fmt.Sprintf("%s:%d: ", tr.name, st.n)
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s%v", where, err)
		}
	}
	if p.c == nil && st.verb != "file" && st.verb != "dir" {
		p.c = &frameClient{p.b.dialFrom(t, tr.peer, tr.local, "control")}
	}
	if p.c != nil {
		p.c.where = where
	}
	switch st.verb {
	case "login":
		p.c.want("220 *")
		p.c.frames().enter()
		p.framed, p.heard = true, true
	case "C>", "C+", "C1", "C#":
		if p.queued == "" {
			p.c.quiet()
		}
		if b, ok := frameStepBytes(t, st); ok && p.framed {
			p.queued += string(b)
		} else {
			text, err := unescape(st.text)
			check(err)
			p.queued += text + "\r\n"
			p.framed = text == "FRAM 1"
		}
		switch st.verb {
		case "C+":
			return
		case "C1":
			for i := range len(p.queued) {
				p.c.send(p.queued[i : i+1])
				synctest.Wait()
			}
		default:
			p.c.send(p.queued)
		}
		p.queued = ""
	case "S>":
		if !p.heard {
			line := p.c.want(st.text)
			p.heard = p.framed && strings.HasPrefix(line, "200 Frames")
			return
		}
		p.server(st.text, check)
	case "S#":
		want, err := annotatedHex(st.text)
		check(err)
		got := make([]byte, len(want))
		p.c.conn.SetReadDeadline(time.Now().Add(replyTime))
		n, err := io.ReadFull(p.c.r, got)
		if err != nil || string(got) != string(want) {
			t.Fatalf("%sgot  %x %q, %v\nwant %x %q", where, got[:n], got[:n], err, want, want)
		}
	case "late":
		synctest.Wait()
	case "quiet":
		p.c.quiet()
	case "closed":
		p.c.ended()
		p.ended = true
	case "close":
		p.c.bare.Close()
		p.ended = true
	case "wait":
		pause, err := time.ParseDuration(st.text)
		check(err)
		time.Sleep(pause) // of the bubble's time
	default:
		p.disk(st, where, check)
	}
}

// server reads one frame, or as many D as the content has.
func (p *goldenPlayer) server(text string, check func(error)) {
	p.t.Helper()
	kind, payload, _ := strings.Cut(text, " ")
	want, err := framePayload(kind, payload)
	check(err)
	got, n := "", 0
	for got == "" || kind == "D" && len(got) < len(want) && strings.HasPrefix(payload, "@") {
		var part string
		var k frameType
		if k, part = p.c.next(); k.String() != kind {
			p.c.fatalf("got  %s %.300q\nwant %s", k, part, text)
		}
		got += part
		if n++; part == "" {
			break
		}
	}
	if got != want && (strings.HasPrefix(payload, "@") || !wildcard(want, got)) {
		p.c.fatalf("got  %s %.300q\nwant %s", kind, got, text)
	}
}

// disk is a step about files and the log, after all is done.
func (p *goldenPlayer) disk(st transcriptStep, where string, check func(error)) {
	t := p.t
	t.Helper()
	synctest.Wait()
	name, content, _ := strings.Cut(st.text, " = ")
	full := filepath.Join(p.b.home, name)
	switch st.verb {
	case "file":
		text, err := transcriptContent(content)
		check(err)
		if p.c == nil {
			p.b.put(t, name, text)
			return
		}
		got, err := os.ReadFile(full)
		check(err)
		if string(got) != text {
			t.Fatalf("%s%q holds %.300q; want %.300q", where, name, got, text)
		}
	case "dir":
		if p.c == nil {
			check(os.MkdirAll(full, 0o755))
		}
		if info, err := os.Lstat(full); err != nil || !info.IsDir() {
			t.Fatalf("%s%q is no directory: %v", where, name, err)
		}
	case "nofile":
		if _, err := os.Lstat(full); !errors.Is(err, os.ErrNotExist) {
			t.Fatalf("%s%q is there: %v", where, name, err)
		}
	case "log", "nolog":
		found := slices.ContainsFunc(strings.Split(p.b.log.String(), "\n"), func(l string) bool { return wildcard(st.text, l) })
		if found != (st.verb == "log") {
			t.Fatalf("%sthe log has a line %q: %v\n%s", where, st.text, found, p.b.log)
		}
	default:
		t.Fatalf("%sunknown step %q", where, st.verb)
	}
}

// --- the ways in ---

// frameWays are the connections that frames travel on, each logged in, to a server of its
// own.
func frameWays(t *testing.T, config, user string, do func(t *testing.T, b *ftpBox, c *frameClient)) {
	t.Helper()
	local := filepath.Join(t.TempDir(), "s")
	listen := fmt.Sprintf("limits.data_timeout = \"15s\"\nserver.drain = \"5s\"\nlisten = { control = [\"127.0.0.1:0\"], tls = [\"127.0.0.1:0\"], datagram = [], http = [], local = [%q] }\n", local)
	for _, way := range []string{"memory", "plain", "explicit TLS", "implicit TLS", "local"} {
		t.Run(way, func(t *testing.T) {
			if way == "memory" {
				b := newFTPBox(t, config, user)
				do(t, b, b.dialFrames(t).enter())
				return
			}
			b := newFTPBox(t, config+listen, user)
			var c *ftpClient
			addrs := b.serveReal(t)
			address := func(kind string) net.Addr {
				for i, k := range b.srv.sockets {
					if k.kind == kind {
						return addrs[i]
					}
				}
				t.Fatal("no socket", kind)
				return nil
			}
			switch way {
			case "plain":
				c = b.dialReal(t, address("control"))
			case "explicit TLS":
				c = b.dialReal(t, address("control"))
				c.want("220 *")
				c.cmd("AUTH TLS", "234 *")
				c.startTLS(clientTLS())
				do(t, b, c.frames().enter())
				return
			case "implicit TLS":
				c = b.dialReal(t, address("tls"))
				c.startTLS(clientTLS())
			case "local":
				c = b.dialLocal(t, local)
			}
			c.want("220 *")
			do(t, b, c.frames().enter())
		})
	}
}

// dialLocal connects to the unix socket.
func (b *ftpBox) dialLocal(t testing.TB, path string) *ftpClient {
	t.Helper()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &ftpClient{t: t, box: b, bare: c, conn: c, r: bufio.NewReader(c)}
}

// TestFramesEveryWay: the same session over memory, TCP, TLS of both kinds and the unix
// socket; sizes around every buffer's and every path's edge.
func TestFramesEveryWay(t *testing.T) {
	frameWays(t, "", "", func(t *testing.T, b *ftpBox, c *frameClient) {
		big := string(testBytes(5<<20 + 3))
		for _, n := range []int{0, 1, smallGet - 1, smallGet, smallGet + 1, spliceFrom, copyBuffer, copyBuffer + 1, 1<<20 - 1, 1 << 20, 1<<20 + 1, len(big)} {
			name := fmt.Sprint("f", n)
			c.put(name, big[:n], fmt.Sprintf(`,"size":%d`, n))
			if got := c.fetchFile(name); got != big[:n] {
				t.Fatalf("%d bytes came back as %d others", n, len(got))
			}
			if got := b.content(t, name); got != big[:n] {
				t.Fatalf("%d bytes are stored as %d others", n, len(got))
			}
		}
		// With frames of every size, and without any digest.
		c.frame(frameRequest, `{"do":"put","path":"odd"}`)
		for rest, n := big, 1; len(rest) > 0; n = n*3 + 1 {
			n = min(n, len(rest), maxFrame)
			c.frame(frameData, rest[:n])
			c.frame(frameData, "")
			rest = rest[n:]
		}
		c.frame(frameEnd, "")
		if o := c.wantEnd(226, ""); o.SHA256 != hexSum(big) {
			t.Fatal(o.raw)
		}
		if got := c.get(`{"do":"get","path":"odd","offset":70001,"size":4000000}`); got != big[70001:4070001] {
			t.Fatal("the middle differs")
		}
		c.do(`{"do":"list"}`, 226, "")
		c.do(`{"do":"hash","path":"odd"}`, 213, "")
		c.do(`{"do":"quit"}`, 221, "")
		c.ended()
	})
}

// TestFramesPasswordsInClear: frames are no way around TLS.
func TestFramesPasswordsInClear(t *testing.T) {
	inBox(t, "", "", func(t *testing.T, b *ftpBox) {
		far := b.dialFrom(t, peer2, peer1, "control")
		far.want("220 *")
		f := far.frames()
		f.do(`{"do":"login","user":"ann","password":"secret"}`, 530, "tls_required")
		f.do(`{"do":"list"}`, 530, "not_logged_in")
		f.bare.Close()
		b.user(t, "cam", "tls = \"optional\"\n")
		far = b.dialFrom(t, peer2, peer1, "control")
		far.want("220 *")
		far.frames().enter("cam")
		secure := b.dialFrom(t, peer2, peer1, "control")
		secure.want("220 *")
		secure.cmd("AUTH TLS", "234 *")
		secure.startTLS(&tls.Config{InsecureSkipVerify: true})
		secure.frames().enter()
	})
}

// --- the first frames ---

// TestFirstFramesBehindFRAM: what is behind the line is frames, in whatever segments it
// came, also while the session is still busy with a line before it.
func TestFirstFramesBehindFRAM(t *testing.T) {
	frames := string(appendFrame(appendFrame(nil, frameRequest, []byte(`{"do":"login","user":"ann","password":"secret","id":1}`)), frameRequest, []byte(`{"do":"echo","text":"\u0000\r\nNOOP\r\n","id":2}`)))
	frames += string(appendFrame(nil, framePing, []byte("\xff\xf4\xff\xf2\r\nABOR\r\n\xff"))) // Telnet's bytes are data here
	answers := func(c *frameClient) {
		c.t.Helper()
		c.wantFrame(frameAnswer, `{"id":1,"code":230,*`)
		c.wantFrame(frameAnswer, `{"id":2,"code":200,*`)
		c.wantFrame(framePing, "\xff\xf4\xff\xf2\r\nABOR\r\n\xff")
	}
	for _, before := range []string{"", "NOOP\r\nSYST\r\n"} {
		for cut := range len(before) + len("FRAM 1\r\n") + len(frames) + 1 {
			if cut > len(before)+20 && cut%7 > 0 {
				continue // around FRAM every cut, then some
			}
			inBox(t, "", "", func(t *testing.T, b *ftpBox) {
				f := b.dial(t)
				f.want("220 *")
				all := before + "FRAM 1\r\n" + frames
				f.where = fmt.Sprintf("cut at %d: ", cut)
				f.send(all[:cut])
				synctest.Wait()
				if cut < len(all) {
					f.send(all[cut:])
				}
				if before != "" {
					f.want("200 *", "215 *")
				}
				f.want("200 Frames*")
				answers(&frameClient{f})
			})
		}
	}
	for _, line := range []string{"FRAM 1\r\n", "fram 1\n", "FRAM 1  \r\n", "\xff\xf1FRAM 1\r\n"} {
		t.Run(fmt.Sprintf("behind a transfer, %q", line), func(t *testing.T) {
			inBox(t, "", "", func(t *testing.T, b *ftpBox) {
				b.put(t, "big", strings.Repeat("x", 4*memBuffer))
				c := b.dial(t).login()
				c.cmd("EPSV", "229 *")
				d := c.data()
				c.cmd("RETR big", "150 *")
				time.Sleep(time.Second) // the session watches by now
				c.send("NOOP\r\n" + line + frames)
				time.Sleep(time.Second)
				if got, err := io.ReadAll(d); err != nil || len(got) != 4*memBuffer {
					t.Fatal(len(got), err)
				}
				c.want("226 *", "200 *", "200 Frames*")
				f := &frameClient{c}
				f.wantFrame(frameAnswer, `{"id":1,"code":503,*"reason":"logged_in"}`)
				f.wantFrame(frameAnswer, `{"id":2,"code":200,*`)
				f.wantFrame(framePing, "\xff\xf4\xff\xf2\r\nABOR\r\n\xff")
				f.do(`{"do":"get","path":"big","size":1}`, 226, "")
			})
		})
	}
}

// TestFRAMKeepsTheSession: who is logged in stays so, in his directory; versions that
// are not known change nothing.
func TestFRAMKeepsTheSession(t *testing.T) {
	inBox(t, "", "", func(t *testing.T, b *ftpBox) {
		b.put(t, "d/f", "content")
		c := b.dial(t).login()
		for _, line := range []string{"FRAM 2", "FRAM 0", "FRAM 1.0", "FRAM 01", "FRAM 1 2"} {
			c.cmd(line, "504 *")
		}
		c.cmd("FRAM", "501 *")
		c.cmd("CWD d", "250 *")
		c.cmd("REST 5", "350 *")
		f := c.frames()
		if got := f.fetchFile("f"); got != "content" {
			t.Fatal(got)
		}
		b.wantMetric(t, 1, "berth_sessions", "frames")
		b.wantMetric(t, 0, "berth_sessions", "ftp")
		f.bare.Close()
		<-f.over
		b.wantMetric(t, 0, "berth_sessions", "frames")
	})
}

// TestFramesByteByByte: a session whose client has no buffers.
func TestFramesByteByByte(t *testing.T) {
	inBox(t, "", "", func(t *testing.T, b *ftpBox) {
		c := b.dialFrames(t)
		slowly := func(kind frameType, payload string) {
			t.Helper()
			for _, x := range appendFrame(nil, kind, []byte(payload)) {
				c.send(string([]byte{x}))
				synctest.Wait()
			}
		}
		slowly(frameRequest, `{"do":"login","user":"ann","password":"secret"}`)
		c.wantEnd(230, "")
		slowly(framePing, "ping")
		c.wantFrame(framePing, "ping")
		slowly(frameRequest, `{"do":"put","path":"f"}`)
		c.wantFrame(frameAnswer, `{"code":150,*"offset":0}`)
		slowly(frameData, "some ")
		slowly(framePing, "")
		c.wantFrame(framePing, "")
		slowly(frameData, "data")
		slowly(frameEnd, `{"size":9,"sha256":"`+hexSum("some data")+`"}`)
		c.wantEnd(226, "")
		slowly(frameRequest, `{"do":"get","path":"f"}`)
		if o := c.wantEnd(226, ""); string(o.data) != "some data" {
			t.Fatalf("%q", o.data)
		}
		slowly(frameCancel, "")
		slowly(frameCancel, "why")
		slowly(frameRequest, `{"do":"quit"}`)
		c.wantEnd(221, "")
		c.ended()
	})
}
