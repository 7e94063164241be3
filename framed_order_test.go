package main

// Order and time in framed sessions: what is out of place and what comes late, requests
// that wait for others, X and P while something runs, and how a session ends that says
// nothing, or is told to. The client and the golden sessions are in framed_test.go.

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// --- what is out of place ---

// TestFramesThatNobodySends: each is answered with what was wrong, and the connection is
// closed; before login as after it.
func TestFramesThatNobodySends(t *testing.T) {
	header := func(n uint32, kind frameType) string {
		return string(append([]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}, byte(kind)))
	}
	whole := func(kind frameType, payload string) string { return string(appendFrame(nil, kind, []byte(payload))) }
	type row struct {
		name, bytes  string
		code         int
		reason, text string
	}
	rows := []row{
		{"max+1", header(maxFrame+1, 'R'), 500, "frame_too_long", "A frame of 262145 bytes: at most 262144 are allowed."},
		{"2^31", header(1<<31, 'D'), 500, "frame_too_long", "A frame of 2147483647 bytes: *"},
		{"2^32-1", header(1<<32-1, 0xff), 500, "frame_too_long", "*"},
		{"HTTP", "GET / HTTP/1.1\r\nHost: box\r\n\r\n", 500, "frame_too_long", "*"},
		{"type 255", whole(0xff, ""), 500, "bad_frame", "There are no frames of type 0xff; *"},
		{"type 0", whole(0, "abc"), 500, "bad_frame", "There are no frames of type 0x00; *"},
		{"lower case", whole('r', `{"do":"list"}`), 500, "bad_frame", "There are no frames of type r; *"},
		{"no type to the server, header alone", header(100, 'E'), 500, "bad_frame", "Frames of type E go to the client only."},
		{"an answer", whole(frameAnswer, `{"code":200}`), 500, "bad_frame", "Frames of type A go to the client only."},
		{"a message", whole(frameMessage, ""), 500, "bad_frame", "Frames of type M go to the client only."},
		{"data", whole(frameData, "x"), 503, "out_of_state", "A frame of type D is out of place: *"},
		{"empty data", whole(frameData, ""), 503, "out_of_state", "A frame of type D is out of place: *"},
		{"an end", whole(frameEnd, "{}"), 503, "out_of_state", "A frame of type F is out of place: *"},
		{"a signal", whole(frameSignal, `{"signal":"INT"}`), 503, "out_of_state", "A frame of type S is out of place: *"},
		{"a window", whole(frameWindow, `{"rows":1,"cols":1}`), 503, "out_of_state", "A frame of type W is out of place: *"},
		{"an empty request", whole(frameRequest, ""), 501, "bad_json", "The request is not JSON: *"},
		{"bad JSON", whole(frameRequest, `{"do":`), 501, "bad_json", "The request is not JSON: *"},
		{"two requests in one", whole(frameRequest, `{"do":"time"}{"do":"time"}`), 501, "bad_json", "There is something behind *"},
		{"an array", whole(frameRequest, `[1]`), 501, "bad_json", "A request is a JSON object, *"},
		{"no UTF-8", whole(frameRequest, "{\"do\":\"\xc0\xaf\"}"), 501, "bad_json", "The request is not UTF-8; *"},
	}
	for _, state := range []string{"stranger", "user", "behind a request", "in a put"} {
		for _, r := range rows {
			t.Run(state+": "+r.name, func(t *testing.T) {
				inBox(t, "", "", func(t *testing.T, b *ftpBox) {
					c := b.dialFrames(t)
					code, reason, text := r.code, r.reason, r.text
					switch state {
					case "user":
						c.enter()
					case "behind a request":
						c.enter().do(`{"do":"time"}`, 200, "")
					case "in a put":
						c.enter().frame(frameRequest, `{"do":"put","path":"f"}`)
						c.wantFrame(frameAnswer, `{"code":150,*`)
						switch r.bytes[4] {
						case 'D', 'F':
							if r.code == 503 {
								return // that is what a put is made of
							}
						case 'R':
							if r.reason == "bad_json" {
								code, reason, text = 503, "out_of_state", "A frame of type R is out of place: *"
							}
						}
						if reason != "bad_frame" {
							c.frame(frameData, "some")
						}
					}
					c.send(r.bytes)
					c.violates(code, reason, text)
					<-c.over
					if state == "in a put" && reason != "bad_frame" {
						if got := b.content(t, "f"); got != "some" { // as of every upload that is cut off
							t.Errorf("what is kept of the put: %q", got)
						}
					}
					b.wantMetric(t, 1, "berth_sessions_total", "frames", "abuse")
					b.wantMetric(t, 0, "berth_panics_total")
					if log := b.log.String(); strings.Count(log, "msg=refused") != 1 {
						t.Errorf("the log:\n%s", log)
					}
				})
			})
		}
	}
}

// TestFramesInAPut: what may not be in its F, nor between its frames.
func TestFramesInAPut(t *testing.T) {
	for name, c := range map[string]struct {
		frame        string
		code         int
		reason, text string
	}{
		"F that is no JSON":          {string(appendFrame(nil, frameEnd, []byte("{"))), 501, "bad_json", "A frame of type F is *"},
		"F with a digest that is no": {string(appendFrame(nil, frameEnd, []byte(`{"sha256":"abc"}`))), 501, "bad_json", "In the frame of type F: sha256 is 64 hexadecimal digits."},
		"F of 8,193 bytes":           {"\x00\x00\x20\x01F", 501, "bad_frame", "A frame of type F with 8193 bytes: *"},
		"a request":                  {string(appendFrame(nil, frameRequest, []byte(`{"do":"time"}`))), 503, "out_of_state", "A frame of type R is out of place: a request in the middle of a put, which ends with F or X."},
		"a signal":                   {string(appendFrame(nil, frameSignal, []byte(`{"signal":"INT"}`))), 503, "out_of_state", "*"},
		"an answer":                  {string(appendFrame(nil, frameAnswer, []byte(`{}`))), 500, "bad_frame", "*"},
	} {
		t.Run(name, func(t *testing.T) {
			inBox(t, "", "", func(t *testing.T, b *ftpBox) {
				b.put(t, "f", "old")
				f := b.dialFrames(t).enter()
				f.frame(frameRequest, `{"do":"put","path":"f","id":"p"}`)
				f.wantFrame(frameAnswer, `{"id":"p","code":150,*`)
				f.frame(frameData, "new")
				f.send(c.frame)
				f.violates(c.code, c.reason, c.text)
				<-f.over
				if got := b.content(t, "f"); got != "old" {
					t.Errorf("the file became %q", got)
				}
			})
		})
	}
}

// TestLateFrames: what a client has sent on trust behind a request that is over, or was
// refused, means nothing; behind the next request it would.
func TestLateFrames(t *testing.T) {
	inBox(t, "", "permissions = [\"list\"]\n", func(t *testing.T, b *ftpBox) {
		c := b.dialFrames(t).enter()
		for _, request := range []string{`{"do":"put","path":"f"}`, `{"do":"put"}`, `{"do":"put","path":5}`, `{"do":"exec","command":"x"}`, `{"do":"nothing"}`, `{}`} {
			c.frame(frameRequest, request)
			c.pour(strings.Repeat("x", maxFrame+1))
			c.frame(frameSignal, `{"signal":"INT"}`)
			c.frame(frameWindow, "whatever")
			c.frame(framePing, "?")
			c.frame(frameEnd, strings.Repeat(" ", maxFrame))
			if o := c.rest(); o.Code < 500 {
				t.Fatal(o.raw)
			}
			c.wantFrame(framePing, "?")
			c.do(`{"do":"time"}`, 200, "")
		}
		c.frame(frameData, "")
		c.violates(503, "out_of_state", "*")
	})
}

// --- pipelining ---

// TestPipelining: 200 requests in one go, puts among them, are answered in order and each
// with its id; the answers leave in few segments, but none waits for another request.
func TestPipelining(t *testing.T) {
	frameWays(t, "", "", func(t *testing.T, b *ftpBox, c *frameClient) {
		var all []byte
		for i := range 50 {
			data := strings.Repeat(string(rune('a'+i%26)), i*37)
			all = appendFrame(all, frameRequest, fmt.Appendf(nil, `{"do":"put","path":"f%d","id":%d,"size":%d}`, i, 4*i, len(data)))
			all = appendFrame(all, frameData, []byte(data))
			all = appendFrame(all, frameEnd, fmt.Appendf(nil, `{"sha256":"%s"}`, hexSum(data)))
			all = appendFrame(all, frameRequest, fmt.Appendf(nil, `{"do":"get","path":"f%d","id":%d}`, i, 4*i+1))
			all = appendFrame(all, frameRequest, fmt.Appendf(nil, `{"do":"stat","path":"g%d","id":%d}`, i, 4*i+2))
			all = appendFrame(all, frameRequest, fmt.Appendf(nil, `{"do":"hash","path":"f%d","id":%d}`, i, 4*i+3))
		}
		sent := make(chan error, 1)
		go func() {
			_, err := c.conn.Write(all)
			sent <- err
		}()
		for i := range 50 {
			data := strings.Repeat(string(rune('a'+i%26)), i*37)
			want := func(n, code int, reason string) *outcome {
				o := c.wantEnd(code, reason)
				if id := fmt.Sprint(4*i + n); string(o.ID) != id || o.opening != nil && string(o.opening.ID) != id {
					t.Fatalf("the answer %s; want id %s", o.raw, id)
				}
				return o
			}
			want(0, 226, "")
			if o := want(1, 226, ""); string(o.data) != data {
				t.Fatalf("f%d: %q", i, o.data)
			}
			want(2, 550, "not_found")
			if o := want(3, 213, ""); o.SHA256 != hexSum(data) {
				t.Fatalf("f%d: %s", i, o.raw)
			}
		}
		if err := <-sent; err != nil {
			t.Fatal(err)
		}
		c.quietFor(10 * time.Millisecond)
	})
}

// quietFor fails if a frame comes.
func (f *frameClient) quietFor(d time.Duration) {
	f.t.Helper()
	if k, p, err := f.take(d); !errors.Is(err, os.ErrDeadlineExceeded) {
		f.fatalf("unexpected: %s %.200q, %v", k, p, err)
	}
}

// TestPipeliningBehindALongRequest: more than the session keeps waits in the socket, and
// still all is answered in order.
func TestPipeliningBehindALongRequest(t *testing.T) {
	inBox(t, "", "", func(t *testing.T, b *ftpBox) {
		b.put(t, "big", strings.Repeat("x", 4*memBuffer))
		c := b.dialFrames(t).enter()
		c.frame(frameRequest, `{"do":"get","path":"big"}`)
		time.Sleep(time.Second) // it stalls, and the session reads on
		const n = 100
		sent := make(chan struct{})
		go func() {
			defer close(sent)
			for i := range n {
				c.frame(frameRequest, fmt.Sprintf(`{"do":"echo","text":%q,"id":%d}`, strings.Repeat("y", 3000), i))
			}
		}()
		time.Sleep(time.Second)
		if got := c.wantEnd(226, ""); len(got.data) != 4*memBuffer {
			t.Fatal(len(got.data))
		}
		for i := range n {
			if o := c.wantEnd(200, ""); string(o.ID) != fmt.Sprint(i) {
				t.Fatal(o.raw)
			}
		}
		<-sent
	})
}

// --- X ---

// TestCancel: X ends what runs, and what waits behind it, with 426; the session goes on.
func TestCancelFrames(t *testing.T) {
	many := func(t *testing.T, b *ftpBox) {
		if err := os.Mkdir(filepath.Join(b.home, "many"), 0o755); err != nil {
			t.Fatal(err)
		}
		for i := range 3000 {
			b.put(t, fmt.Sprintf("many/a-name-that-is-rather-long-%05d", i), "")
		}
	}
	for name, c := range map[string]struct {
		prepare func(t *testing.T, b *ftpBox)
		request string
	}{
		"get":         {func(t *testing.T, b *ftpBox) { b.put(t, "big", strings.Repeat("x", 20*maxFrame)) }, `{"do":"get","path":"big","id":1}`},
		"list":        {many, `{"do":"list","path":"many","id":1}`},
		"list of all": {many, `{"do":"list","recursive":true,"id":1}`},
	} {
		t.Run(name, func(t *testing.T) {
			inBox(t, "", "", func(t *testing.T, b *ftpBox) {
				c.prepare(t, b)
				f := b.dialFrames(t).enter()
				f.frame(frameRequest, c.request)
				time.Sleep(time.Second) // the client reads nothing, and it stalls
				f.frame(frameRequest, `{"do":"put","path":"new","id":2}`)
				f.frame(frameData, "on trust")
				f.frame(frameEnd, "{}")
				f.frame(frameRequest, `{"do":"mkdir","path":"new","id":3}`)
				f.frame(frameCancel, "")
				f.frame(frameRequest, `{"do":"echo","text":"behind X","id":4}`)
				time.Sleep(time.Second)
				o := f.wantEnd(426, "cancelled")
				if string(o.ID) != "1" || len(o.ends) != 0 {
					t.Fatalf("%s, F %q", o.raw, o.ends)
				}
				if len(o.data) > memBuffer+2*maxFrame {
					t.Errorf("%d bytes came after X", len(o.data))
				}
				for _, id := range []string{"2", "3"} {
					if o := f.wantEnd(426, "cancelled"); string(o.ID) != id {
						t.Fatal(o.raw)
					}
				}
				if o := f.wantEnd(200, ""); o.Text != "behind X" {
					t.Fatal(o.raw)
				}
				if _, err := os.Lstat(filepath.Join(b.home, "new")); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("a request that was cancelled before its turn was done: %v", err)
				}
				f.do(`{"do":"time"}`, 200, "")
				if name == "get" {
					b.wantMetric(t, 1, "berth_transfers_total", "download", "aborted")
				}
			})
		})
	}
}

// TestCancelPut: X instead of F; what has come is kept as of any upload.
func TestCancelPut(t *testing.T) {
	frameWays(t, "", "", func(t *testing.T, b *ftpBox, c *frameClient) {
		data := string(testBytes(3 << 20))
		b.put(t, "old", "old content")
		for _, name := range []string{"new", "old"} {
			c.frame(frameRequest, `{"do":"put","path":"`+name+`"}`)
			c.pour(data)
			c.frame(frameCancel, "enough")
			c.wantEnd(426, "cancelled")
			o := c.do(`{"do":"stat","path":"`+name+`"}`, 213, "")
			if want := fmt.Sprintf(`{"size":%d,"sha256":"%s"}`, len(data), hexSum(data)); name == "old" && o.field("partial") != want {
				t.Errorf("partial: %s; want %s", o.field("partial"), want)
			}
		}
		if b.content(t, "new") != data || b.content(t, "old") != "old content" {
			t.Error("the files are not as they should be")
		}
		c.put("old", "newer content", "")
	})
}

// TestCancelHash: a digest is computed for as long as somebody wants it.
func TestCancelHash(t *testing.T) {
	frameWays(t, "", "", func(t *testing.T, b *ftpBox, c *frameClient) {
		sparse(t, filepath.Join(b.home, "huge"), 1<<40) // days of work
		c.frame(frameRequest, `{"do":"hash","path":"huge"}`)
		c.frame(frameCancel, "")
		c.wantEnd(426, "cancelled")
		c.do(`{"do":"hash","path":"huge","size":5}`, 213, "")
		c.do(`{"do":"get","path":"huge","offset":1099511627770}`, 226, "")
	})
}

// sparse makes a file of a size that no disk has to have.
func sparse(t *testing.T, name string, size int64) {
	t.Helper()
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Skip(err)
	}
}

// TestCancelNothing: X that comes when all is done, or before anything, has no answer.
func TestCancelNothing(t *testing.T) {
	inBox(t, "", "", func(t *testing.T, b *ftpBox) {
		c := b.dialFrames(t)
		c.frame(frameCancel, "")
		c.enter()
		for range 100 {
			c.frame(frameCancel, "x")
			c.frame(frameRequest, `{"do":"time"}`)
			c.frame(frameCancel, "")
			c.wantEnd(200, "")
		}
		c.quiet()
	})
}

// TestCancelSlowReader: over TCP, with a client that takes a little at a time.
func TestCancelSlowReader(t *testing.T) {
	frameWays(t, "", "", func(t *testing.T, b *ftpBox, c *frameClient) {
		if c.host == "" && c.over != nil {
			return // in memory it stalls at once: TestCancelFrames
		}
		sparse(t, filepath.Join(b.home, "huge"), 1<<40)
		c.frame(frameRequest, `{"do":"get","path":"huge"}`)
		c.wantFrame(frameAnswer, `{"code":150,*`)
		for range 40 {
			if k, p := c.next(); k != frameData || strings.Trim(p, "\x00") != "" {
				t.Fatalf("%s %.20q", k, p)
			}
		}
		c.frame(frameCancel, "")
		c.frame(framePing, "and this?")
		c.wantEnd(426, "cancelled")
		c.do(`{"do":"time"}`, 200, "")
	})
}

// --- P ---

// TestPing: P is answered whatever runs, with the same payload, and disturbs nothing.
func TestPing(t *testing.T) {
	frameWays(t, "", "", func(t *testing.T, b *ftpBox, c *frameClient) {
		for _, n := range []int{0, 1, 1024, frameBuffer, maxFrame - 1, maxFrame} {
			p := string(testBytes(n))
			go c.frame(framePing, p) // its answer begins before it is all there
			if k, got := c.next(); k != framePing || got != p {
				t.Fatalf("a P of %d bytes came back as %s with %d", n, k, len(got))
			}
		}
		data := string(testBytes(3<<20 + 1))
		c.frame(frameRequest, `{"do":"put","path":"f"}`)
		go func() {
			for i := 0; i < len(data); i += 100_000 {
				c.frame(frameData, data[i:min(i+100_000, len(data))])
				c.frame(framePing, fmt.Sprint(i))
			}
			c.frame(frameEnd, `{"sha256":"`+hexSum(data)+`"}`)
		}()
		o := c.wantEnd(226, "")
		for i, f := range o.other {
			if f.payload != fmt.Sprint(i*100_000) {
				t.Fatalf("P %d is %q", i, f.payload)
			}
		}
		if len(o.other) != 32 {
			t.Errorf("%d of 32 came back", len(o.other))
		}
	})
}

// TestPingDuringRequests: P is answered between the frames of what runs; what is behind
// a P that is too large to be kept waits its turn.
func TestPingDuringRequests(t *testing.T) {
	frameWays(t, "", "", func(t *testing.T, b *ftpBox, c *frameClient) {
		if c.over != nil {
			return // in a bubble's memory nothing runs by itself
		}
		sparse(t, filepath.Join(b.home, "huge"), 1<<40)
		sparse(t, filepath.Join(b.home, "large"), 64<<20)
		for _, request := range []string{`{"do":"get","path":"huge"}`, `{"do":"hash","path":"huge"}`} {
			c.frame(frameRequest, request)
			for i := range 10 {
				c.frame(framePing, fmt.Sprint(i))
			}
			for i := 0; i < 10; {
				switch k, p := c.next(); {
				case k == framePing && p == fmt.Sprint(i):
					i++
				case k == framePing:
					t.Fatalf("P %q where %d was due", p, i)
				}
			}
			c.frame(frameCancel, "")
			c.wantEnd(426, "cancelled")
		}
		c.frame(frameRequest, `{"do":"get","path":"large"}`)
		go c.frame(framePing, strings.Repeat("L", maxAhead+1))
		if o := c.wantEnd(226, ""); len(o.data) != 64<<20 || len(o.other) > 1 {
			t.Errorf("%d bytes, %d frames in their middle", len(o.data), len(o.other))
		} else if len(o.other) == 0 {
			c.wantFrame(framePing, strings.Repeat("L", maxAhead+1))
		}
	})
}

// TestServerPings: while a request is quiet for long the server says that it is there.
func TestServerPings(t *testing.T) {
	inBox(t, "limits.data_timeout = \"1h\"\n", "download_rate = \"20KiB\"\n", func(t *testing.T, b *ftpBox) {
		b.put(t, "f", strings.Repeat("x", 3*maxFrame))
		c := b.dialFrames(t).enter()
		start := time.Now()
		c.conn.SetReadDeadline(start.Add(time.Hour))
		c.frame(frameRequest, `{"do":"get","path":"f"}`)
		o := c.wantEnd(226, "") // replyTime between two frames, at most
		if d := time.Since(start); d < 30*time.Second || d > 45*time.Second {
			t.Errorf("%d bytes took %v at 20 KiB/s", len(o.data), d)
		}
	})
}

// --- how sessions end ---

// TestFramedTimeouts: login and idle, by the bubble's clock.
func TestFramedTimeouts(t *testing.T) {
	const config = "limits.login_timeout = \"1m\"\nlimits.idle = \"10m\"\nlimits.data_timeout = \"2m\"\n"
	begin := func(t *testing.T, b *ftpBox) (*frameClient, func(min, max time.Duration)) {
		c := b.dialFrames(t)
		start := time.Now()
		return c, func(min, max time.Duration) {
			t.Helper()
			c.conn.SetReadDeadline(time.Now().Add(24 * time.Hour))
			if p, err := io.ReadAll(c.r); err != nil {
				t.Fatalf("%q, %v", p, err)
			}
			if d := time.Since(start); d < min || d > max {
				t.Errorf("it took %v; want %v to %v", d, min, max)
			}
			<-c.over
		}
	}
	t.Run("login", func(t *testing.T) {
		inBox(t, config, "", func(t *testing.T, b *ftpBox) {
			c, over := begin(t, b)
			go func() { // no P and no half frame gives anybody more time
				for range 50 {
					c.frame(framePing, "")
					time.Sleep(time.Second)
				}
				c.conn.Write([]byte("\x00\x00\x10\x00R{"))
				time.Sleep(5 * time.Second)
				c.conn.Write([]byte(`"`))
			}()
			over(59*time.Second, 61*time.Second)
			b.wantMetric(t, 1, "berth_sessions_total", "login_timeout")
		})
	})
	t.Run("half a header", func(t *testing.T) {
		inBox(t, config, "", func(t *testing.T, b *ftpBox) {
			c, over := begin(t, b)
			c.enter()
			c.send("\x00\x00")
			over(10*time.Minute, 10*time.Minute+time.Second)
		})
	})
	t.Run("half a request", func(t *testing.T) {
		inBox(t, config, "", func(t *testing.T, b *ftpBox) {
			c, over := begin(t, b)
			c.enter()
			c.send("\x00\x00\x00\x10R{")
			over(10*time.Minute, 10*time.Minute+time.Second)
		})
	})
	t.Run("half a ping", func(t *testing.T) {
		inBox(t, config, "", func(t *testing.T, b *ftpBox) {
			c, over := begin(t, b)
			c.enter()
			c.send("\x00\x00\x00\x10P{")
			over(10*time.Minute, 10*time.Minute+time.Second)
		})
	})
	t.Run("half a put", func(t *testing.T) {
		inBox(t, config, "", func(t *testing.T, b *ftpBox) {
			c, over := begin(t, b)
			c.enter()
			c.frame(frameRequest, `{"do":"put","path":"f"}`)
			c.frame(frameData, "abc")
			c.send("\x00\x00\x00\x10D{")
			over(2*time.Minute, 2*time.Minute+time.Second)
			if got := b.content(t, "f"); got != "abc" && got != "abc{" { // small frames are written whole
				t.Errorf("what is kept: %q", got)
			}
			b.wantMetric(t, 1, "berth_transfers_total", "stalled")
		})
	})
	t.Run("a get that nobody reads", func(t *testing.T) {
		inBox(t, config, "", func(t *testing.T, b *ftpBox) {
			b.put(t, "big", strings.Repeat("x", 20*memBuffer))
			c, _ := begin(t, b)
			c.enter()
			c.frame(frameRequest, `{"do":"get","path":"big"}`)
			start := time.Now()
			<-c.over
			if d := time.Since(start); d < 2*time.Minute || d > 4*time.Minute {
				t.Errorf("it took %v", d)
			}
		})
	})
	t.Run("a list that nobody reads", func(t *testing.T) {
		inBox(t, config, "", func(t *testing.T, b *ftpBox) {
			for i := range 1500 {
				b.put(t, fmt.Sprintf("a-name-that-is-rather-long-%05d", i), "")
			}
			c, _ := begin(t, b)
			c.enter()
			c.frame(frameRequest, `{"do":"list"}`)
			start := time.Now()
			<-c.over
			if d := time.Since(start); d < 30*time.Second || d > 4*time.Minute {
				t.Errorf("it took %v", d)
			}
		})
	})
}

// TestFramedAbuse: words that are no requests are counted as FTP's unknown verbs are.
func TestFramedAbuse(t *testing.T) {
	inBox(t, "", "", func(t *testing.T, b *ftpBox) {
		c := b.dialFrames(t).enter()
		for range abuseLimit - 1 {
			c.do(`{"do":"frobnicate"}`, 500, "unknown_request")
		}
		c.do(`{"do":"list","ofset":5}`, 501, "bad_request") // a mistake, and no attack
		c.do(`{"do":"frobnicate"}`, 500, "unknown_request")
		c.wantEnd(421, "abuse")
		c.ended()
	})
	inBox(t, "", "", func(t *testing.T, b *ftpBox) {
		c := b.dialFrames(t)
		for range failedLimit - 1 {
			c.do(`{"do":"login","user":"ann","password":"wrong"}`, 530, "login")
		}
		c.do(`{"do":"login","user":"nobody","password":"wrong"}`, 421, "banned")
		c.ended()
		b.wantMetric(t, failedLimit, "berth_logins_total", "failed")
	})
}

// TestFramedDrain: an idle session is told at once, a busy one after what it does.
func TestFramedDrain(t *testing.T) {
	b := newFTPBox(t, realListen, "")
	addr := b.serveReal(t)[0]
	enter := func() *frameClient {
		c := b.dialReal(t, addr)
		c.want("220 *")
		return c.frames().enter()
	}
	idle, busy := enter(), enter()
	busy.frame(frameRequest, `{"do":"put","path":"f"}`)
	busy.wantFrame(frameAnswer, `{"code":150,*`)
	done := make(chan struct{})
	go func() {
		defer close(done)
		b.srv.shutdown(nil)
	}()
	idle.wantEnd(421, "")
	idle.ended()
	busy.frame(frameData, "content")
	busy.frame(frameEnd, "{}")
	busy.wantEnd(226, "")
	busy.wantEnd(421, "")
	busy.ended()
	<-done
	if got := b.content(t, "f"); got != "content" {
		t.Errorf("%q", got)
	}
}

// TestFramedSessionIsParked: an idle one has no frame reader and a goroutine of the
// smallest size; nothing that a client sees changes by that. The time it takes is the
// thing itself, so this test waits for it.
func TestFramedSessionIsParked(t *testing.T) {
	frameWays(t, "limits.idle = \"1h\"\n", "", func(t *testing.T, b *ftpBox, c *frameClient) {
		if c.over != nil || strings.HasSuffix(t.Name(), "implicit_TLS") {
			return // no socket, nothing to park; TLS is seen once
		}
		c.put("f", string(testBytes(1<<20)), "")
		b.srv.mu.Lock()
		var s *session
		for _, s = range b.srv.sessions {
		}
		b.srv.mu.Unlock()
		waitUntil(t, "the session to drop its reader", func() bool {
			s.mu.Lock()
			defer s.mu.Unlock()
			if !s.idle {
				return false
			}
			return s.tls != nil || s.fr.in == nil
		})
		if s.tls == nil {
			waitUntil(t, "the session to be parked", func() bool {
				s.mu.Lock()
				defer s.mu.Unlock()
				s.wmu.Lock()
				defer s.wmu.Unlock()
				return s.idle && s.out == nil && s.fr.in == nil
			})
		}
		c.frame(framePing, "awake?")
		c.wantFrame(framePing, "awake?")
		c.send("\x00\x00")
		c.quietFor(parkAfter + 200*time.Millisecond) // half a header must outlive the wait
		c.send("\x00\x0dR{\"do\":\"time\"}")
		c.wantEnd(200, "")
		c.frame(frameRequest, `{"do":"listen"}`)
		c.wantEnd(200, "")
		c.quietFor(parkAfter + 100*time.Millisecond)
		b.srv.chat.say("bob", "hello") // while it is parked
		c.wantFrame(frameMessage, `{"from":"bob","text":"hello",*`)
		c.do(`{"do":"quit"}`, 221, "")
		c.ended()
	})
}

// TestFramesReset: a client that goes away at any moment leaves nothing behind but what
// was complete.
func TestFramesReset(t *testing.T) {
	b := newFTPBox(t, realListen, "")
	addr := b.serveReal(t)[0]
	b.put(t, "f", "old")
	upload := string(appendFrame(nil, frameRequest, []byte(`{"do":"put","path":"f"}`))) + string(appendFrame(nil, frameData, []byte("new"))) + string(appendFrame(nil, frameEnd, []byte(`{"size":3}`)))
	for cut := 1; cut < len(upload); cut++ {
		c := b.dialReal(t, addr)
		c.want("220 *")
		f := c.frames().enter()
		f.send(upload[:cut])
		if tcp := f.bare.(*net.TCPConn); cut%2 == 0 {
			tcp.SetLinger(0)
			tcp.Close()
		} else {
			tcp.CloseWrite()
			io.Copy(io.Discard, f.r)
		}
		if got := b.content(t, "f"); got != "old" {
			t.Fatalf("cut at %d: the file became %q", cut, got)
		}
	}
	waitUntil(t, "the sessions to end", func() bool {
		b.srv.mu.Lock()
		defer b.srv.mu.Unlock()
		return len(b.srv.sessions) == 0
	})
	b.wantMetric(t, 0, "berth_panics_total")
	b.wantMetric(t, 0, "berth_transfers_active")
}

// TestFramesHalfClose: a client that says it will send no more still gets what it has
// asked for.
func TestFramesHalfClose(t *testing.T) {
	frameWays(t, "", "", func(t *testing.T, b *ftpBox, c *frameClient) {
		half, ok := c.bare.(interface{ CloseWrite() error })
		if !ok || c.conn != c.bare {
			return
		}
		big := string(testBytes(5 << 20))
		b.put(t, "big", big)
		c.frame(frameRequest, `{"do":"get","path":"big"}`)
		c.frame(frameRequest, `{"do":"echo","text":"last"}`)
		if err := half.CloseWrite(); err != nil && !errors.Is(err, syscall.ENOTCONN) {
			t.Fatal(err)
		}
		if o := c.wantEnd(226, ""); string(o.data) != big {
			t.Fatal(len(o.data))
		}
		c.wantEnd(200, "")
		c.ended()
	})
}

// TestFramesAreNotHeldUp: in a bubble, an answer is there when the server has nothing
// more to do, without any further request.
func TestFramesAreNotHeldUp(t *testing.T) {
	inBox(t, "", "", func(t *testing.T, b *ftpBox) {
		c := b.dialFrames(t).enter()
		b.put(t, "f", "x")
		for _, r := range []string{`{"do":"get","path":"f"}`, `{"do":"list"}`, `{"do":"stat","path":"f"}`, `{"do":"get","path":"no"}`} {
			c.frame(frameRequest, r)
			synctest.Wait()
			c.conn.SetReadDeadline(time.Now().Add(time.Nanosecond))
			if _, err := c.r.Peek(1); err != nil {
				t.Errorf("%s: %v", r, err)
			}
			c.rest()
		}
	})
}
