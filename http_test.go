package main

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// echoPage tells what it was asked, so that a test sees which request was read.
func echoPage(a *httpAnswer, q *httpRequest) {
	if q.url.Path == "/panic" {
		panic("a bug of the page")
	}
	a.set("Content-Type", "text/plain; charset=utf-8")
	a.body.WriteString(q.method + " " + q.url.Path + "?" + q.url.RawQuery + "\n")
}

func quietHTTPServer(h httpHandler) *httpServer {
	return newHTTPServer(h, func() {}, slog.New(slog.DiscardHandler))
}

// listenHTTP serves h on loopback until the test ends.
func listenHTTP(t *testing.T, h httpHandler) (s *httpServer, addr string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s = quietHTTPServer(h)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go s.serve(c)
		}
	}()
	t.Cleanup(func() {
		ln.Close()
		<-done
		s.close()
		s.shutdown()
	})
	return s, ln.Addr().String()
}

// askHTTP sends words on one connection, ends its side, and returns all answers
// as Go's own client reads them. method tells which have no body.
func askHTTP(t *testing.T, addr, words string, methods ...string) []*http.Response {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(replyTime))
	go func() {
		io.WriteString(c, words)
		c.(*net.TCPConn).CloseWrite()
	}()
	var all []*http.Response
	for r := bufio.NewReader(c); ; {
		method := "GET"
		if len(all) < len(methods) {
			method = methods[len(all)]
		}
		a, err := http.ReadResponse(r, &http.Request{Method: method})
		if err != nil {
			if !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
				t.Errorf("%.60q: answer %d: %v", words, len(all)+1, err)
			}
			return all
		}
		body, err := io.ReadAll(a.Body)
		if err != nil {
			t.Errorf("%.60q: answer %d: %v", words, len(all)+1, err)
		}
		a.Body = io.NopCloser(bytes.NewReader(body))
		all = append(all, a)
	}
}

// What comes in on a connection, and the statuses that go out before it ends.
func TestHTTPRequests(t *testing.T) {
	_, addr := listenHTTP(t, echoPage)
	const host = "Host: box\r\n"
	for _, tt := range []struct {
		words string
		want  []int
	}{
		{"", nil},
		{"\r\n", nil},
		{"GET", nil}, // cut short
		{"GET / HTTP/1.1\r\n" + host, nil},
		{"GET / HTTP/1.1\r\n" + host + "\r\n", []int{200}},
		{"GET / HTTP/1.0\r\n\r\n", []int{200}},
		{"\r\nGET / HTTP/1.1\r\n" + host + "\r\n", []int{200}},
		{"GET / HTTP/1.1\n" + "Host: box\n\n", []int{200}},
		{"GET http://box/metrics HTTP/1.1\r\n" + host + "\r\n", []int{200}},
		{"GET http://box HTTP/1.1\r\n" + host + "\r\n", []int{200}},
		{"GET / HTTP/1.1\r\n" + host + "Content-Length: 0\r\n\r\n", []int{200}},
		{"GET / HTTP/1.9\r\n" + host + "\r\n", []int{200}},
		// Pipelining, and where it ends.
		{strings.Repeat("GET / HTTP/1.1\r\n"+host+"\r\n", 50), slices.Repeat([]int{200}, 50)},
		{"GET / HTTP/1.0\r\n\r\nGET / HTTP/1.0\r\n\r\n", []int{200}},
		{strings.Repeat("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", 2), []int{200, 200}},
		{"GET / HTTP/1.1\r\n" + host + "Connection: x, Close\r\n\r\nGET / HTTP/1.1\r\n" + host + "\r\n", []int{200}},
		{"GET /panic HTTP/1.1\r\n" + host + "\r\nGET / HTTP/1.1\r\n" + host + "\r\n", []int{500}},
		{"POST / HTTP/1.1\r\n" + host + "Content-Length: 0\r\n\r\nGET / HTTP/1.1\r\n" + host + "\r\n", []int{405, 200}},
		// Content is nobody's next request.
		{"POST / HTTP/1.1\r\n" + host + "Content-Length: 40\r\n\r\nGET / HTTP/1.1\r\n" + host + "\r\n", []int{405}},
		{"GET / HTTP/1.1\r\n" + host + "Content-Length: 40\r\n\r\nGET / HTTP/1.1\r\n" + host + "\r\n", []int{413}},
		{"GET / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\n" + host + "\r\n", []int{413}},
		{"GET / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n", []int{400}},
		{"GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", []int{400}},
		{"GET / HTTP/1.1\r\n" + host + "Content-Length: 0\r\nContent-Length: 0\r\n\r\n", []int{400}},
		{"GET / HTTP/1.1\r\n" + host + "Content-Length: +1\r\n\r\n", []int{400}},
		{"GET / HTTP/1.1\r\n" + host + "Content-Length: -1\r\n\r\n", []int{400}},
		{"GET / HTTP/1.1\r\n" + host + "Content-Length: 0, 0\r\n\r\n", []int{400}},
		{"GET / HTTP/1.1\r\n" + host + "Content-Length: 99999999999999999999\r\n\r\n", []int{400}},
		// Methods.
		{"OPTIONS * HTTP/1.1\r\n" + host + "\r\n", []int{405}},
		{"CONNECT box:80 HTTP/1.1\r\n" + host + "\r\n", []int{405}},
		{"get / HTTP/1.1\r\n" + host + "\r\n", []int{405}},
		// Garbage.
		{"\r\n\r\nGET / HTTP/1.1\r\n" + host + "\r\n", []int{400}},
		{"GET /\r\n\r\n", []int{400}},
		{"GET / / HTTP/1.1\r\n" + host + "\r\n", []int{400}},
		{"GET  / HTTP/1.1\r\n" + host + "\r\n", []int{400}},
		{"GET / HTTP/1.1 \r\n" + host + "\r\n", []int{400}},
		{"GET / http/1.1\r\n" + host + "\r\n", []int{400}},
		{"GET / HTTP/11\r\n" + host + "\r\n", []int{400}},
		{"GET / HTTP/2.0\r\n" + host + "\r\n", []int{505}},
		{"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", []int{505}},
		{"GE(T / HTTP/1.1\r\n" + host + "\r\n", []int{400}},
		{" GET / HTTP/1.1\r\n" + host + "\r\n", []int{400}},
		{"GET / HTTP/1.1\r\n\r\n", []int{400}}, // no Host
		{"GET / HTTP/1.1\r\n" + host + host + "\r\n", []int{400}},
		{"GET / HTTP/1.0\r\n" + host + host + "\r\n", []int{400}},
		{"GET / HTTP/1.1\r\n" + host + "X : y\r\n\r\n", []int{400}},
		{"GET / HTTP/1.1\r\n" + host + " folded\r\n\r\n", []int{400}},
		{"GET / HTTP/1.1\r\n" + host + "no colon\r\n\r\n", []int{400}},
		{"GET / HTTP/1.1\r\n" + host + ": y\r\n\r\n", []int{400}},
		{"GET / HTTP/1.1\r\n" + host + "X: a\rb\r\n\r\n", []int{400}},
		{"GET / HTTP/1.1\r\n" + host + "X: a\x00b\r\n\r\n", []int{400}},
		{"GET /\x7f HTTP/1.1\r\n" + host + "\r\n", []int{400}},
		{"GET /%zz HTTP/1.1\r\n" + host + "\r\n", []int{400}},
		{"GET metrics HTTP/1.1\r\n" + host + "\r\n", []int{400}},
		{"GET mailto:x HTTP/1.1\r\n" + host + "\r\n", []int{400}},
		{"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\n", []int{400}}, // a TLS client
		{"USER ann\r\n", []int{400}},                                   // an FTP client
		// Too long, in one line and in many.
		{"GET /" + strings.Repeat("x", httpHeadLimit) + " HTTP/1.1\r\n" + host + "\r\n", []int{431}},
		{"GET / HTTP/1.1\r\n" + host + "X: " + strings.Repeat("x", httpHeadLimit) + "\r\n\r\n", []int{431}},
		{"GET / HTTP/1.1\r\n" + host + strings.Repeat("X: y\r\n", httpHeadLimit/6) + "\r\n", []int{431}},
		{"GET / HTTP/1.1\r\n" + host + strings.Repeat("X: y\r\n", httpHeadLimit/6-8) + "\r\n", []int{200}},
	} {
		var got []int
		for _, a := range askHTTP(t, addr, tt.words) {
			got = append(got, a.StatusCode)
			if allow := a.Header.Get("Allow"); (a.StatusCode == 405) != (allow == "GET, HEAD") {
				t.Errorf("%.80q: %d with Allow %q", tt.words, a.StatusCode, allow)
			}
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%.80q: %v, want %v", tt.words, got, tt.want)
		}
	}
}

// HEAD is GET without the body, field for field, and what is kept is said.
func TestHTTPAnswers(t *testing.T) {
	_, addr := listenHTTP(t, echoPage)
	const get = "GET /a%20b?x=1 HTTP/1.1\r\nHost: box\r\n\r\n"
	all := askHTTP(t, addr, strings.Replace(get, "GET", "HEAD", 1)+get+
		"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\nGET / HTTP/1.0\r\n\r\n", "HEAD")
	if len(all) != 4 {
		t.Fatalf("%d answers, want 4", len(all))
	}
	body, _ := io.ReadAll(all[1].Body)
	if string(body) != "GET /a b?x=1\n" || all[1].ContentLength != int64(len(body)) {
		t.Errorf("GET: %q, Content-Length %d", body, all[1].ContentLength)
	}
	if head, _ := io.ReadAll(all[0].Body); len(head) != 0 || all[0].ContentLength != all[1].ContentLength+1 { // it echoes the method
		t.Errorf("HEAD: %q, Content-Length %d", head, all[0].ContentLength)
	}
	for i, want := range []string{"", "", "keep-alive", "close"} {
		got := all[i].Header.Get("Connection")
		if all[i].Close { // ReadResponse takes it out
			got = "close"
		}
		if got != want {
			t.Errorf("answer %d: Connection %q, want %q", i+1, got, want)
		}
		if _, err := http.ParseTime(all[i].Header.Get("Date")); err != nil {
			t.Errorf("answer %d: %v", i+1, err)
		}
	}
}

// Go's client sees over the wire what the handler made, again and again on one
// connection, packed and unpacked.
func TestHTTPGoClient(t *testing.T) {
	_, addr := listenHTTP(t, newFTPBox(t, "", "").srv.pages.answer)
	transport := &http.Transport{MaxConnsPerHost: 1}
	defer transport.CloseIdleConnections()
	client := http.Client{Transport: transport, Timeout: replyTime}
	for range 3 {
		for path, want := range map[string]string{"/metrics": "berth_build_info", "/healthz": "ok\n", "/readyz": "ready\n", "/": "<h1>box</h1>"} {
			a, err := client.Get("http://" + addr + path)
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(a.Body)
			a.Body.Close()
			if err != nil || a.StatusCode != 200 || !strings.Contains(string(body), want) || a.Header.Get("X-Content-Type-Options") != "nosniff" {
				t.Errorf("%s: %v, %d %v %.100q", path, err, a.StatusCode, a.Header, body)
			}
		}
	}
	if a, err := client.Post("http://"+addr+"/metrics", "text/plain", strings.NewReader(strings.Repeat("x", 100<<10))); err != nil {
		t.Errorf("a refused POST: %v", err) // a reset before the answer was read
	} else {
		a.Body.Close()
		if a.StatusCode != 405 {
			t.Errorf("POST: %d", a.StatusCode)
		}
	}
}

// curl and nc, where they are installed, agree.
func TestHTTPTools(t *testing.T) {
	_, addr := listenHTTP(t, newFTPBox(t, "", "").srv.pages.answer)
	host, port, _ := net.SplitHostPort(addr)
	for _, tt := range []struct {
		stdin, want string
		tool        []string
	}{
		{"", "ok\nok\n", []string{"curl", "-sSf", "http://" + addr + "/healthz", "http://" + addr + "/healthz"}},
		{"", "ok\n", []string{"curl", "-sSf", "--http1.0", "http://" + addr + "/healthz"}},
		{"", "ok\n", []string{"curl", "-sSf", "--http2", "http://" + addr + "/healthz"}},
		{"", "Content-Length: 3\r\n", []string{"curl", "-sSfI", "http://" + addr + "/healthz"}},
		{"", "berth_build_info", []string{"curl", "-sSf", "--compressed", "http://" + addr + "/metrics"}},
		{"", "405", []string{"curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", "-d", "x=y", "http://" + addr + "/"}},
		{"GET /healthz HTTP/1.0\r\n\r\n", "\r\n\r\nok\n", []string{"nc", host, port}},
	} {
		path, err := exec.LookPath(tt.tool[0])
		if err != nil {
			t.Logf("%s is not installed", tt.tool[0])
			continue
		}
		cmd := exec.CommandContext(t.Context(), path, tt.tool[1:]...)
		cmd.Stdin = strings.NewReader(tt.stdin)
		if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), tt.want) {
			t.Errorf("%v: %v, %.300q without %q", tt.tool, err, out, tt.want)
		}
	}
}

// Who begins a request and does not end it, or asks nothing more, is let go.
func TestHTTPTimeouts(t *testing.T) {
	const whole = "GET / HTTP/1.1\r\nHost: box\r\n\r\n"
	for name, tt := range map[string]struct {
		words string // sent a byte a second
		at    time.Duration
		reads bool // the answers
	}{
		"silent":     {"", httpHeaderTimeout, true},
		"slowloris":  {whole, httpHeaderTimeout, true},
		"idle":       {"!" + whole, httpIdleTimeout, true},
		"slow again": {"!" + whole + "GET /", httpHeaderTimeout, true},
		"deaf":       {"!" + whole, httpWriteTimeout, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				near, far := net.Pipe()
				var writer sync.WaitGroup
				defer writer.Wait()
				defer near.Close()
				ended := make(chan time.Duration, 1)
				began := time.Now()
				go func() {
					quietHTTPServer(echoPage).serve(far)
					ended <- time.Since(began)
				}()
				if tt.reads {
					go io.Copy(io.Discard, near)
				}
				words := tt.words
				if rest, ok := strings.CutPrefix(words, "!"); ok { // the first request at once
					io.WriteString(near, rest[:len(whole)])
					words = rest[len(whole):]
				}
				writer.Go(func() {
					for _, b := range []byte(words) {
						if _, err := near.Write([]byte{b}); err != nil {
							return
						}
						time.Sleep(time.Second) // the bubble's
					}
				})
				if at := <-ended; at != tt.at {
					t.Errorf("the connection ended after %v, want %v", at, tt.at)
				}
			})
		})
	}
}

// Who holds connections and asks nothing keeps nobody out.
func TestHTTPTooManyConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		s := quietHTTPServer(func(a *httpAnswer, q *httpRequest) {
			if q.url.Path == "/slow" {
				<-release
			}
		})
		dial := func() net.Conn {
			near, far := net.Pipe()
			go s.serve(far)
			synctest.Wait()
			return near
		}
		var idle []net.Conn
		for range httpConnLimit {
			idle = append(idle, dial())
			time.Sleep(time.Millisecond)
		}
		late := dial()
		if _, err := idle[0].Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("the connection that waited longest: %v, want its end", err)
		}
		io.WriteString(idle[1], "GET /slow HTTP/1.1\r\nHost: box\r\n\r\n")
		go io.WriteString(late, "GET / HTTP/1.1\r\nHost: box\r\n\r\n")
		if a, err := http.ReadResponse(bufio.NewReader(late), nil); err != nil || a.StatusCode != 200 {
			t.Errorf("a new connection in the crowd: %v", err)
		}
		synctest.Wait()
		for range 2 * httpConnLimit { // never at the cost of an answer under way
			defer dial().Close()
		}
		close(release)
		if a, err := http.ReadResponse(bufio.NewReader(idle[1]), nil); err != nil || a.StatusCode != 200 {
			t.Errorf("the busy connection: %v", err)
		}
		s.close()
		s.shutdown()
	})
}

// Who does not read what he asked for keeps his place for a moment, and then nobody out.
func TestHTTPDeafGiveWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := quietHTTPServer(echoPage)
		var deaf []net.Conn
		for range httpConnLimit {
			near, far := net.Pipe()
			go s.serve(far)
			io.WriteString(near, "GET / HTTP/1.1\r\nHost: box\r\n\r\n")
			deaf = append(deaf, near)
			time.Sleep(time.Millisecond)
		}
		synctest.Wait()
		ask := func() error {
			near, far := net.Pipe()
			defer near.Close()
			go s.serve(far)
			go io.WriteString(near, "GET / HTTP/1.1\r\nHost: box\r\nConnection: close\r\n\r\n")
			_, err := http.ReadResponse(bufio.NewReader(near), nil)
			return err
		}
		if ask() == nil {
			t.Error("an answer under way was cut within the second")
		}
		time.Sleep(httpWriteLeast)
		if err := ask(); err != nil {
			t.Errorf("a new connection among the deaf: %v", err)
		}
		if _, err := http.ReadResponse(bufio.NewReader(deaf[0]), nil); err == nil {
			t.Error("the slowest has his answer, and not his end")
		}
		if _, err := http.ReadResponse(bufio.NewReader(deaf[1]), nil); err != nil {
			t.Errorf("another: %v", err)
		}
		s.close()
		s.shutdown()
	})
}

// When all connections are busy, a new one is closed; nothing waits in a queue.
func TestHTTPAllBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		s := quietHTTPServer(func(*httpAnswer, *httpRequest) { <-release })
		for range httpConnLimit {
			near, far := net.Pipe()
			go s.serve(far)
			io.WriteString(near, "GET / HTTP/1.0\r\n\r\n")
			go io.Copy(io.Discard, near)
		}
		synctest.Wait()
		near, far := net.Pipe()
		s.serve(far)
		if _, err := near.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("one connection too many: %v, want its end", err)
		}
		close(release)
		s.shutdown()
	})
}

// shutdown ends what waits at once, and what is being answered when it has been.
func TestHTTPShutdown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		s := quietHTTPServer(func(a *httpAnswer, q *httpRequest) {
			<-release
			a.body.WriteString("done")
		})
		idle, far := net.Pipe()
		go s.serve(far)
		busy, far := net.Pipe()
		go s.serve(far)
		io.WriteString(busy, "GET / HTTP/1.1\r\nHost: box\r\n\r\n")
		synctest.Wait()
		var down atomic.Bool
		go func() { s.shutdown(); down.Store(true) }()
		synctest.Wait()
		if _, err := idle.Read(make([]byte, 1)); err != io.EOF || down.Load() {
			t.Errorf("waiting connection: %v; down %v", err, down.Load())
		}
		late, far := net.Pipe()
		go s.serve(far)
		if _, err := late.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("a connection after shutdown: %v", err)
		}
		close(release)
		a, err := http.ReadResponse(bufio.NewReader(busy), nil)
		if err != nil || !a.Close {
			t.Errorf("the answer under way: %v", err)
		} else if body, _ := io.ReadAll(a.Body); string(body) != "done" {
			t.Errorf("the answer under way: %q", body)
		}
		synctest.Wait()
		if !down.Load() {
			t.Error("shutdown did not return")
		}
	})
}

func TestHTTPPanics(t *testing.T) {
	var panics atomic.Int32
	var log bytes.Buffer
	within := httpWithin(time.Minute, echoPage, "late")
	for _, page := range []httpHandler{echoPage, within} {
		s := newHTTPServer(page, func() { panics.Add(1) }, slog.New(slog.NewTextHandler(&log, nil)))
		near, far := net.Pipe()
		var wg sync.WaitGroup
		wg.Go(func() { s.serve(far) })
		io.WriteString(near, "GET /panic HTTP/1.1\r\nHost: box\r\n\r\n")
		if a, err := http.ReadResponse(bufio.NewReader(near), nil); err != nil || a.StatusCode != 500 || !a.Close {
			t.Errorf("a page that panics: %v", err)
		}
		near.Close()
		wg.Wait()
	}
	if panics.Load() != 2 || strings.Count(log.String(), "a bug of the page") != 2 {
		t.Errorf("%d panics counted, log %q", panics.Load(), log.String())
	}
}

// Whatever arrives is refused, or means the same to Go's parser; and the bounds
// hold.
func FuzzHTTPRequest(f *testing.F) {
	for _, words := range []string{
		"GET / HTTP/1.1\r\nHost: box\r\n\r\n",
		"\r\nHEAD http://box/a%20b?c=d HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\nGET /",
		"POST / HTTP/1.1\nHost: box\nTransfer-Encoding: chunked\n\n0\n\n",
		"GET / HTTP/1.1\r\nHost:box\r\nAccept: a\r\nACCEPT:\tb \r\n\r\n",
		"GET / HTTP/2.0\r\n\r\n", "GET / HTTP/1.1\r\n X: y\r\n\r\n",
	} {
		f.Add([]byte(words))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r := bufio.NewReaderSize(bytes.NewReader(data), httpHeadLimit)
		q, err := readHTTPRequest(r)
		if q == nil {
			t.Fatal("no request")
		}
		var refused httpRefusal
		if errors.As(err, &refused) && (refused.status < 400 || refused.status > 599 || q.keep && refused.status != httpMethodNotAllowed) {
			t.Errorf("refused with %d, kept %v", refused.status, q.keep)
		}
		if err != nil {
			return
		}
		if q.url == nil || !strings.HasPrefix(q.url.Path, "/") && q.url.Path != "*" && q.url.Host == "" {
			t.Errorf("path of %q: %v", data, q.url)
		}
		theirs, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(bytes.TrimPrefix(bytes.TrimPrefix(data, []byte("\r")), []byte("\n")))))
		if err != nil {
			t.Fatalf("%q is taken, but not by net/http: %v", data, err)
		}
		if theirs.Method != q.method || theirs.URL.Query().Encode() != q.url.Query().Encode() ||
			theirs.URL.Path != q.url.Path && theirs.URL.Path != "" || theirs.ContentLength != 0 || theirs.TransferEncoding != nil {
			t.Errorf("%q: %s %s, but to net/http %s %s", data, q.method, q.url, theirs.Method, theirs.URL)
		}
		if host := (&url.URL{Host: theirs.Host}).Hostname(); host != q.host() {
			t.Errorf("%q: asks %q, but to net/http %q", data, q.host(), host)
		}
		for _, name := range []string{"Accept", "Accept-Encoding"} {
			if !slices.Equal(theirs.Header.Values(name), q.header.values(name)) {
				t.Errorf("%q: %s is %q, but to net/http %q", data, name, q.header.values(name), theirs.Header.Values(name))
			}
		}
	})
}

// Whatever stands in an Authorization field is a name and a password to us if it is
// to net/http, and the same ones.
func FuzzHTTPBasicAuth(f *testing.F) {
	for _, value := range []string{
		"Basic YW5uOnNlY3JldA==", "basic  YW5uOnNlY3JldA==", "BASIC YW5uOg==", "Basic Og==", "Basic YW5u", "Basic YTpiOmM=",
		"Basic YW5uOnNlY3JldA", "Basic YW5uOnNl\tY3JldA==", "Basic ", "Basic", "Bearer x", "Basic /zr+AA==", "Basic YW5uOnNlY3JldA==, Basic YTpi",
		"Basic YW5uOnNlY3JldA==\r\nAuthorization: Basic YTpi", "Digest username=\"ann\"", "",
	} {
		f.Add([]byte(value))
	}
	f.Fuzz(func(t *testing.T, value []byte) {
		words := "GET / HTTP/1.1\r\nHost: box\r\nAuthorization: " + string(value) + "\r\n\r\n"
		q, err := readHTTPRequest(bufio.NewReaderSize(strings.NewReader(words), httpHeadLimit))
		if err != nil {
			return
		}
		theirs, err := http.ReadRequest(bufio.NewReader(strings.NewReader(words)))
		if err != nil {
			t.Fatalf("%q is taken, but not by net/http: %v", words, err)
		}
		name, password, ok := q.basicAuth()
		if n := len(theirs.Header.Values("Authorization")); n != 1 {
			if ok {
				t.Errorf("%q: %q is taken from %d fields", value, name, n)
			}
			return
		}
		// RFC 9110 section 11.6.2 has one space; more do no harm.
		scheme, rest, _ := strings.Cut(theirs.Header.Get("Authorization"), " ")
		theirs.Header.Set("Authorization", scheme+" "+strings.TrimLeft(rest, " "))
		if n, p, k := theirs.BasicAuth(); k != ok || ok && (n != name || p != password) {
			t.Errorf("%q: %q %q %v, but to net/http %q %q %v", value, name, password, ok, n, p, k)
		}
	})
}

// At the level debug each answer leaves one line, with an address and no port.
func TestHTTPLog(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	var log bytes.Buffer
	s := newHTTPServer(echoPage, func() {}, newLogger("berth", logConfig{Format: "json", Level: "debug"}, new(slog.LevelVar), &log))
	for words, want := range map[string]string{
		"GET /a%0ab?x HTTP/1.0\r\n\r\n": `{"time":*,"level":"DEBUG","msg":"http request","addr":"127.0.0.1","verb":"GET","path":"/a\nb","bytes":*,"dur":0.*,"result":200,"reason":""}`,
		"POST /c HTTP/1.0\r\n\r\n":      `{*"addr":"127.0.0.1","verb":"POST","path":"*","bytes":*,"dur":0.*,"result":405,"reason":"Only GET and HEAD are answered here."}`,
		"nonsense\r\n\r\n":              `{*"addr":"127.0.0.1","verb":"*","path":"*","bytes":*,"dur":0.*,"result":400,"reason":"*"}`,
	} {
		c, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(c, words)
		c.(*net.TCPConn).CloseWrite()
		other, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		log.Reset()
		s.serve(other)
		c.Close()
		if got := log.String(); !wildcard(want+"\n", got) {
			t.Errorf("got  %q\nwant %q", got, want)
		}
	}
}
