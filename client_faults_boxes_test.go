package main

// What the client makes of servers that are no berth, or one that lies: each ends with
// one line that says what happened and the right exit code, in bounded time and memory,
// and writes nothing but what was asked for. The servers are a few lines each; what a
// real one does over a line that breaks is in client_faults_test.go.

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// A fakeBox is the other end of one connection of a server that a test makes up. When
// the client is gone its methods end the goroutine, as testing.T's do.
type fakeBox struct {
	net.Conn
	in   *bufio.Reader
	sent *atomic.Int64
	over chan struct{} // the test's end
}

// fakeServer runs serve for each connection; sent is how many bytes clients were sent.
func fakeServer(t *testing.T, serve func(b *fakeBox)) (port string, sent *atomic.Int64) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	sent = new(atomic.Int64)
	var runs sync.WaitGroup
	over := make(chan struct{})
	var mu sync.Mutex
	var conns []net.Conn
	runs.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns = append(conns, c)
			mu.Unlock()
			runs.Go(func() {
				defer c.Close()
				defer func() {
					if r := recover(); r != nil && r != fakeGone {
						panic(r)
					}
				}()
				serve(&fakeBox{Conn: c, in: bufio.NewReader(c), sent: sent, over: over})
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		close(over)
		mu.Lock()
		for _, c := range conns {
			c.Close()
		}
		mu.Unlock()
		runs.Wait()
	})
	_, port, _ = net.SplitHostPort(ln.Addr().String())
	return port, sent
}

// fakeGone is what ends a fakeBox whose client has gone.
const fakeGone = "the client has gone"

func (b *fakeBox) say(text string) {
	n, err := io.WriteString(b.Conn, text)
	b.sent.Add(int64(n))
	if err != nil {
		panic(fakeGone)
	}
}

// hear reads a line.
func (b *fakeBox) hear() string {
	line, err := b.in.ReadString('\n')
	if err != nil {
		panic(fakeGone)
	}
	return line
}

// stay waits until the client has gone.
func (b *fakeBox) stay() {
	io.Copy(io.Discard, b.in)
}

// frame sends a frame; take reads one, and answers the client's questions whether the box
// lives.
func (b *fakeBox) frame(t frameType, payload string) {
	b.say(string(appendFrame(nil, t, []byte(payload))))
}

func (b *fakeBox) answer(payload string) { b.frame(frameAnswer, payload) }

func (b *fakeBox) take() (frameType, string) {
	for {
		var h [frameHeader]byte
		if _, err := io.ReadFull(b.in, h[:]); err != nil {
			panic(fakeGone)
		}
		t, n, err := parseHeader(h[:])
		p := make([]byte, n)
		if err == nil {
			_, err = io.ReadFull(b.in, p)
		}
		if err != nil {
			panic(fakeGone)
		}
		if t == framePing {
			b.frame(framePing, string(p))
			continue
		}
		return t, string(p)
	}
}

// request reads frames up to a request, and is its verb.
func (b *fakeBox) request() string {
	for {
		if t, p := b.take(); t == frameRequest {
			var q struct{ Do string }
			json.Unmarshal([]byte(p), &q)
			return q.Do
		}
	}
}

// frames brings a client to where it asks for something: greeting, FRAM 1 and login.
func (b *fakeBox) frames() {
	b.say("220 box ready.\r\n")
	b.hear()
	b.say("200 Frames from here on.\r\n")
	b.request()
	b.answer(`{"code":230,"text":"Logged in.","user":"ann","home":"/","permissions":["read"],"server":"box","version":"1"}`)
}

// opening and closing are a get's answers.
func opening(size int64) string {
	return fmt.Sprintf(`{"code":150,"text":"Here it comes.","size":%d,"mtime":"2026-11-21T12:00:00Z","mode":"0644","offset":0}`, size)
}

func closing(data string) string {
	return fmt.Sprintf(`{"size":%d,"sha256":%q}`, len(data), hexSum(data))
}

const complete = `{"code":226,"text":"Complete."}`

// A fakeCase is a server, a verb, and how it is to end.
type fakeCase struct {
	name  string
	words string // {DIR} is the client's directory; empty: get box:f DIR/f, which is there
	serve func(b *fakeBox)
	code  int
	say   string // a part of the line
	wrote string // what f has afterwards; empty: what it had
}

// fakeOld is what DIR/f has at the beginning.
const fakeOld = "what was there before"

var fakeCases = []fakeCase{
	// --- no berth ---
	{name: "FTP without frames", code: exitNoConn, say: "lftp", serve: func(b *fakeBox) {
		b.say("220 ProFTPD Server ready.\r\n")
		b.hear()
		b.say("500 FRAM not understood\r\n")
		b.stay()
	}},
	{name: "FTP with a long greeting", code: exitNoConn, say: "lftp", serve: func(b *fakeBox) {
		b.say("220-Welcome\r\n220-\r\n  to this\r\n220 server\r\n")
		b.hear()
		b.say("502 Command not implemented.\r\n")
		b.stay()
	}},
	{name: "HTTP", code: exitNoConn, say: "is no berth", serve: func(b *fakeBox) {
		b.say("HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n400 Bad Request")
	}},
	{name: "SSH", code: exitNoConn, say: "check the port", serve: func(b *fakeBox) {
		b.say("SSH-2.0-OpenSSH_9.6\r\n")
		b.stay()
	}},
	{name: "SMTP", code: exitNoConn, say: "500", serve: func(b *fakeBox) {
		b.say("220 mail.example.org ESMTP\r\n")
		b.hear()
		b.say("500 5.5.1 Command unrecognized\r\n")
	}},
	{name: "silent", code: exitNoConn, say: "says nothing for 300ms", serve: (*fakeBox).stay},
	{name: "half a greeting", code: exitNoConn, say: "says nothing for 300ms", serve: func(b *fakeBox) {
		b.say("22")
		b.stay()
	}},
	{name: "closes at once", code: exitNoConn, say: "closed the connection", serve: func(b *fakeBox) {}},
	{name: "garbage", code: exitNoConn, say: "is no berth", serve: func(b *fakeBox) {
		b.say(string(testBytes(64 << 10)))
		b.stay()
	}},
	{name: "escape sequences", code: exitNoConn, say: "is no berth", serve: func(b *fakeBox) {
		b.say("\x1b[2J\x1b]0;evil\x07\u202e\r\n")
	}},
	{name: "an endless line", code: exitNoConn, say: "is no berth", serve: func(b *fakeBox) {
		b.say("220 ")
		for {
			b.say(strings.Repeat("A", 64<<10))
		}
	}},
	{name: "endless lines", code: exitNoConn, say: "is no berth", serve: func(b *fakeBox) {
		for {
			b.say("220-and so on\r\n")
		}
	}},
	{name: "421", code: exitNoConn, say: "Too many connections", serve: func(b *fakeBox) {
		b.say("421 Too many connections; try again later.\r\n")
	}},
	{name: "another greeting", code: exitNoConn, say: "554 no", serve: func(b *fakeBox) {
		b.say("554 no \x1b[31mservice\r\n")
	}},
	{name: "another version", code: exitNoConn, say: "504", serve: func(b *fakeBox) {
		b.say("220 box ready.\r\n")
		b.hear()
		b.say("504 Frames of version 2 only.\r\n")
		b.stay()
	}},
	{name: "no TLS", words: "get --tls --fingerprint sha256:" + strings.Repeat("00", 32) + " ann@127.0.0.1:f {DIR}/f", code: exitNoConn, say: "no TLS", serve: func(b *fakeBox) {
		b.say("220 FTP\r\n")
		b.hear()
		b.say("502 no\r\n")
	}},
	{name: "TLS that is none", words: "get --tls --fingerprint sha256:" + strings.Repeat("00", 32) + " ann@127.0.0.1:f {DIR}/f", code: exitNoConn, say: "no TLS", serve: func(b *fakeBox) {
		b.say("220 FTP\r\n")
		b.hear()
		b.say("234 go\r\n")
		b.say(string(testBytes(1 << 10)))
	}},
	{name: "a TLS handshake that hangs", words: "get --tls --fingerprint sha256:" + strings.Repeat("00", 32) + " ann@127.0.0.1:f {DIR}/f", code: exitNoConn, say: "no TLS", serve: func(b *fakeBox) {
		b.say("220 FTP\r\n")
		b.hear()
		b.say("234 go\r\n")
		b.stay()
	}},
	// --- frames that are none ---
	{name: "no answer to login", code: exitNoConn, say: "nothing was heard", serve: func(b *fakeBox) {
		b.say("220 box\r\n")
		b.hear()
		b.say("200 ok\r\n")
		b.stay()
	}},
	{name: "a frame of 4 GiB", code: exitNoConn, say: "no frame of berth's", serve: func(b *fakeBox) {
		b.frames()
		b.request()
		b.say("\xff\xff\xff\xffA")
		b.stay()
	}},
	{name: "a frame that never ends", code: exitNoConn, say: "nothing was heard", serve: func(b *fakeBox) {
		b.frames()
		b.request()
		b.say("\x00\x00\x00\x10A{}")
		for {
			b.in.ReadByte() // and no answer to P
			if _, err := b.in.Peek(1); err != nil {
				return
			}
		}
	}},
	{name: "a frame that P fills", code: exitNoConn, say: "nothing was heard", serve: func(b *fakeBox) {
		b.frames()
		b.request()
		b.say("\x00\x00\x10\x00A{}")
		for {
			b.take() // and the answer goes into the frame
		}
	}},
	{name: "a frame of an unknown type", code: exitNoConn, say: "no frame of berth's", serve: func(b *fakeBox) {
		b.frames()
		b.request()
		b.frame('Z', "what?")
		b.stay()
	}},
	{name: "a request", code: exitNoConn, say: "no frame of berth's", serve: func(b *fakeBox) {
		b.frames()
		b.request()
		b.frame(frameRequest, `{"do":"get","path":"/etc/passwd"}`)
		b.stay()
	}},
	{name: "an answer that is no JSON", code: exitNoConn, say: "not as berth writes them", serve: func(b *fakeBox) {
		b.frames()
		b.request()
		b.answer("\x1b[2Jhello")
		b.stay()
	}},
	{name: "an answer without a code", code: exitNoConn, say: "not as berth writes them", serve: func(b *fakeBox) {
		b.frames()
		b.request()
		b.answer(`{}`)
		b.stay()
	}},
	// It may be taken for the answer to the first request, which comes at the same time; that ends the connection too.
	{name: "an answer to nothing", code: exitNoConn, say: "berth get: 127.0.0.1", serve: func(b *fakeBox) {
		b.frames()
		b.answer(`{"code":200,"text":"\u001b[2J"}`)
		b.request()
		b.stay()
	}},
	{name: "421 in frames", code: exitNoConn, say: "going down", serve: func(b *fakeBox) {
		b.frames()
		b.request()
		b.answer(`{"code":421,"text":"The server is going down.\u001b[2J"}`)
	}},
	{name: "a refusal with escapes", code: exitFailed, say: "no such file", serve: func(b *fakeBox) {
		b.frames()
		b.request()
		b.answer(`{"code":550,"text":"No such file.\u001b]0;evil\u0007","reason":"not_found"}`)
		b.stay()
	}},
	{name: "a refusal without a text", code: exitFailed, say: "550", serve: func(b *fakeBox) {
		b.frames()
		b.request()
		b.answer(`{"code":550}`)
		b.stay()
	}},
	{name: "messages without end", code: exitNoConn, say: "closed the connection", serve: func(b *fakeBox) {
		b.frames()
		b.request()
		for range 200 {
			b.frame(frameMessage, `{"from":"x","text":"`+strings.Repeat("y", 900)+`"}`)
			b.frame(framePing, strings.Repeat("p", 1000))
		}
	}},
	// --- files that are none ---
	{name: "a file", code: exitOK, wrote: "fine", serve: func(b *fakeBox) {
		b.frames()
		b.request()
		b.answer(opening(4))
		b.frame(frameData, "fi")
		b.frame(frameMessage, `{"text":"hello"}`)
		b.frame(frameData, "")
		b.frame(frameData, "ne")
		b.frame(frameEnd, closing("fine"))
		b.answer(complete)
		b.request()
		b.answer(`{"code":221,"text":"Goodbye."}`)
	}},
	{name: "data without 150", code: exitNoConn, say: "data that nobody asked for", serve: func(b *fakeBox) {
		b.frames()
		b.request()
		b.frame(frameData, "fine")
		b.stay()
	}},
	{name: "stderr in a get", code: exitNoConn, say: "data that nobody asked for", serve: func(b *fakeBox) {
		b.frames()
		b.request()
		b.answer(opening(4))
		b.frame(frameData, "fine")
		b.frame(frameEnd, closing("fine"))
		b.frame(frameStderr, complete)
		for {
			b.take() // and answers P
		}
	}},
	{name: "an end without 150", code: exitNoConn, say: "nobody asked for", serve: func(b *fakeBox) {
		b.frames()
		b.request()
		b.frame(frameEnd, closing(""))
		b.stay()
	}},
	{name: "more than promised", code: exitNoConn, say: "more than it has promised", serve: func(b *fakeBox) {
		b.frames()
		b.request()
		b.answer(opening(4))
		for {
			b.frame(frameData, strings.Repeat("x", 100<<10))
		}
	}},
	{name: "less than promised", code: exitMismatch, say: "digest mismatch", serve: func(b *fakeBox) {
		b.frames()
		for b.request() != "quit" {
			b.answer(opening(400))
			b.frame(frameData, "fine")
			b.frame(frameEnd, closing("fine"))
			b.answer(complete)
		}
	}},
	{name: "another digest", code: exitMismatch, say: "digest mismatch", serve: func(b *fakeBox) {
		b.frames()
		for b.request() != "quit" {
			b.answer(opening(4))
			b.frame(frameData, "fine")
			b.frame(frameEnd, closing("fime"))
			b.answer(complete)
		}
	}},
	{name: "no digest", code: exitNoConn, say: "without telling its digest", serve: func(b *fakeBox) {
		b.frames()
		b.request()
		b.answer(opening(4))
		b.frame(frameData, "fine")
		b.frame(frameEnd, `{"size":4}`)
		b.answer(complete)
		b.stay()
	}},
	{name: "no end", code: exitNoConn, say: "without telling its digest", serve: func(b *fakeBox) {
		b.frames()
		b.request()
		b.answer(opening(4))
		b.frame(frameData, "fine")
		b.answer(complete)
		b.stay()
	}},
	{name: "an end that is no JSON", code: exitNoConn, say: "no JSON", serve: func(b *fakeBox) {
		b.frames()
		b.request()
		b.answer(opening(4))
		b.frame(frameData, "fine")
		b.frame(frameEnd, "{]")
		b.stay()
	}},
	{name: "an answer without its file", code: exitNoConn, say: "without telling its digest", serve: func(b *fakeBox) {
		b.frames()
		b.request()
		b.answer(complete)
		b.stay()
	}},
	{name: "another offset", code: exitNoConn, say: "byte 7", serve: func(b *fakeBox) {
		b.frames()
		b.request()
		b.answer(`{"code":150,"size":10,"mtime":"2026-11-21T12:00:00Z","mode":"0644","offset":7}`)
		b.frame(frameData, "fin")
		b.frame(frameEnd, closing("fin"))
		b.answer(complete)
		b.stay()
	}},
	{name: "a size below 0", code: exitNoConn, say: "a size below zero", serve: func(b *fakeBox) {
		b.frames()
		b.request()
		b.answer(opening(-5))
		b.frame(frameData, "fine")
		b.frame(frameEnd, closing("fine"))
		b.answer(complete)
		b.stay()
	}},
	{name: "a size beyond all disks", code: exitNoConn, say: "closed the connection", serve: func(b *fakeBox) {
		b.frames()
		b.request()
		b.answer(opening(1 << 62))
		b.frame(frameData, "fine")
	}},
	{name: "a size that is no number", code: exitNoConn, say: "not as berth writes them", serve: func(b *fakeBox) {
		b.frames()
		b.request()
		b.answer(`{"code":150,"size":1e40,"offset":0}`)
		b.stay()
	}},
	{name: "a mode that is none", words: "get --preserve ann@127.0.0.1:f {DIR}/f", code: exitNoConn, say: "which is none", serve: func(b *fakeBox) {
		b.frames()
		b.request()
		b.answer(`{"code":150,"size":4,"mtime":"9999-11-21T12:00:00Z","mode":"\u001b[2J","offset":0}`)
		b.frame(frameData, "fine")
		b.frame(frameEnd, closing("fine"))
		b.answer(complete)
		b.stay()
	}},
	{name: "a mode with more than permissions", words: "get --preserve ann@127.0.0.1:f {DIR}/f", code: exitOK, wrote: "fine", serve: func(b *fakeBox) {
		b.frames()
		b.request()
		b.answer(`{"code":150,"size":4,"mtime":"0001-01-01T00:00:00Z","mode":"177600","offset":0}`)
		b.frame(frameData, "fine")
		b.frame(frameEnd, closing("fine"))
		b.answer(complete)
		b.request()
		b.answer(`{"code":221,"text":"Goodbye."}`)
	}},
	// --- puts ---
	{name: "a put that another digest answers", words: "put {DIR}/f ann@127.0.0.1:", code: exitMismatch, say: "another digest", serve: func(b *fakeBox) {
		b.frames()
		b.request()
		b.answer(`{"code":213,"type":"dir"}`)
		b.request()
		b.answer(`{"code":150,"offset":0}`)
		for {
			if t, _ := b.take(); t == frameEnd {
				break
			}
		}
		b.answer(`{"code":226,"size":4,"sha256":"` + hexSum("other") + `"}`)
		b.request()
	}},
	{name: "a put that nobody reads", words: "put {DIR}/big ann@127.0.0.1:", code: exitNoConn, say: "nothing was heard", serve: func(b *fakeBox) {
		b.frames()
		b.request()
		b.answer(`{"code":213,"type":"dir"}`)
		b.request()
		b.answer(`{"code":150,"offset":0}`)
		<-b.over
	}},
	{name: "a put that is answered and never opened", words: "put {DIR}/big ann@127.0.0.1:", code: exitFailed, say: "no room", serve: func(b *fakeBox) {
		b.frames()
		b.request()
		b.answer(`{"code":213,"type":"dir"}`)
		b.request()
		b.answer(`{"code":552,"text":"No room.","reason":"quota"}`)
		b.request()
		b.answer(`{"code":221}`)
	}},
	// --- listings ---
	{name: "a line of a listing that never ends", words: "ls ann@127.0.0.1:", code: exitFailed, say: "a line of more than", serve: func(b *fakeBox) {
		b.frames()
		b.request()
		b.answer(`{"code":150}`)
		b.frame(frameData, `{"name":"`)
		for range 20 {
			b.frame(frameData, strings.Repeat("x", 100<<10))
		}
		b.answer(complete)
		b.request()
		b.answer(`{"code":221}`)
	}},
	{name: "half a line", words: "ls ann@127.0.0.1:", code: exitFailed, say: "half a line", serve: func(b *fakeBox) {
		b.frames()
		b.request()
		b.answer(`{"code":150}`)
		b.frame(frameData, `{"name":"`)
		b.answer(complete)
		b.request()
		b.answer(`{"code":221}`)
	}},
	{name: "a line that is no JSON", words: "ls ann@127.0.0.1:", code: exitFailed, say: "listing", serve: func(b *fakeBox) {
		b.frames()
		b.request()
		b.answer(`{"code":150}`)
		b.frame(frameData, "\x1b[2J\n")
		b.answer(complete)
		b.request()
		b.answer(`{"code":221}`)
	}},
	{name: "a stat of no type", words: "ls ann@127.0.0.1:a ann@127.0.0.1:b", code: exitOK, serve: func(b *fakeBox) {
		b.frames()
		for b.request() != "quit" {
			b.answer(`{"code":213}`)
		}
	}},
	{name: "a digest with escapes", words: "hash ann@127.0.0.1:a", serve: func(b *fakeBox) {
		b.frames()
		for b.request() != "quit" {
			b.answer(`{"code":213,"sha256":"\u001b[2J"}`)
		}
	}, code: exitNoConn, say: "which is none"},
	{name: "a df of odd numbers", words: "df ann@127.0.0.1:", serve: func(b *fakeBox) {
		b.frames()
		for b.request() != "quit" {
			b.answer(`{"code":213,"bytes":-9223372036854775808,"files":9223372036854775807,"quota_bytes":1,"quota_files":-1,"free":-1}`)
		}
	}, code: -1},
	{name: "a df of nothing", words: "df ann@127.0.0.1:", serve: func(b *fakeBox) {
		b.frames()
		for b.request() != "quit" {
			b.answer(`{"code":213}`)
		}
	}, code: -1},
	{name: "hostile names", words: "ls -l ann@127.0.0.1:", serve: fakeListing, code: -1},
	{name: "hostile names, all", words: "ls -a ann@127.0.0.1:", serve: fakeListing, code: -1},
	{name: "hostile names, JSON", words: "ls --json ann@127.0.0.1:", serve: fakeListing, code: -1},
	{name: "hostile names by a pattern", words: "get ann@127.0.0.1:* {DIR}/in", serve: fakeListing, code: -1},
}

// hostileNames are what no server should send.
var hostileNames = []string{"../out", "/etc/out", "..", ".", "", "a/../../out", "sub/f", "a\x00b", "a\nb", "\x1b[2Jx", "\u202ex", ".berth-get-f", ".berth-up-x", strings.Repeat("n", 60<<10), strings.Repeat("../", 100) + "out", "\xff\xfe"}

// fakeListing lists them, and has a file for each.
func fakeListing(b *fakeBox) {
	b.frames()
	for {
		switch b.request() {
		case "list":
			b.answer(`{"code":150}`)
			for _, name := range hostileNames {
				b.frame(frameData, fmt.Sprintf(`{"name":%s,"type":"file","size":4,"mtime":"2026-11-21T12:00:00Z","mode":"0644"}`+"\n", encodeJSON(name)))
			}
			b.answer(complete)
		case "get":
			b.answer(opening(4))
			b.frame(frameData, "evil")
			b.frame(frameEnd, closing("evil"))
			b.answer(complete)
		case "quit":
			b.answer(`{"code":221}`)
			return
		default:
			b.answer(`{"code":550,"text":"No.","reason":"not_found"}`)
		}
	}
}

// TestFaultsOfBoxes runs fakeCases side by side: most of their time is --timeout.
func TestFaultsOfBoxes(t *testing.T) {
	faultAlone(t)
	for _, fc := range fakeCases {
		t.Run(fc.name, func(t *testing.T) {
			t.Parallel()
			top := t.TempDir()
			dir := filepath.Join(top, "a/b/c/d")
			if err := os.MkdirAll(filepath.Join(dir, "in"), 0o755); err != nil {
				t.Fatal(err)
			}
			os.WriteFile(filepath.Join(dir, "f"), []byte(fakeOld), 0o644)
			if strings.Contains(fc.words, "/big") {
				os.WriteFile(filepath.Join(dir, "big"), make([]byte, 24<<20), 0o644)
			}
			port, sent := fakeServer(t, fc.serve)
			words := strings.Fields("get ann@127.0.0.1:f {DIR}/f")
			if fc.words != "" {
				words = strings.Fields(fc.words)
			}
			for i := range words {
				words[i] = strings.ReplaceAll(words[i], "{DIR}", dir)
			}
			words = append(words, "--timeout", "300ms")
			if words[0] == "get" || words[0] == "put" {
				words = append(words, "--retry", "50ms")
			}
			r := faultVerb(nil, port, words...)
			shown := r.out + r.errs
			t.Logf("%.1500v", r)
			if r.code != fc.code && fc.code >= 0 || !strings.Contains(shown, fc.say) {
				t.Errorf("want exit code %d and %q", fc.code, fc.say)
			}
			for _, bad := range []string{"\x1b", "\x07", "\x00", "\r", "panic"} {
				if strings.Contains(shown, bad) {
					t.Errorf("it shows %q", bad)
				}
			}
			if n := sent.Load(); n > 24<<20 {
				t.Errorf("it has taken %d bytes", n)
			}
			if r.took > 30*time.Second {
				t.Errorf("it took %v", r.took)
			}
			want := fakeOld
			if fc.wrote != "" {
				want = fc.wrote
			}
			if got, err := os.ReadFile(filepath.Join(dir, "f")); string(got) != want {
				t.Errorf("f has %q, %v", got, err)
			}
			filepath.WalkDir(top, func(p string, d os.DirEntry, err error) error {
				if rel, _ := filepath.Rel(dir, p); err != nil || !d.IsDir() && rel != "f" && rel != "big" && filepath.Dir(rel) != "in" {
					if data, _ := os.ReadFile(p); !bytes.HasPrefix([]byte("fine"), data) || filepath.Base(p) != ".berth-get-f" || r.code != exitNoConn {
						t.Errorf("%s was written, with %q, %v", rel, data, err)
					}
				}
				return nil
			})
		})
	}
}
