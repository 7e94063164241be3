package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// A visitor is who asks for a page, without the wire.
type visitor struct {
	from   string // 127.0.0.1 if left out
	secure bool
	login  string // NAME:PASSWORD
	header httpFields
}

// ask has the pages answer one request.
func (b *ftpBox) ask(t testing.TB, target string, v visitor) *httpAnswer {
	t.Helper()
	u, err := url.ParseRequestURI(target)
	if err != nil {
		t.Fatal(err)
	}
	if v.from == "" {
		v.from = "127.0.0.1"
	}
	q := &httpRequest{method: "GET", url: u, header: v.header, secure: v.secure, peer: netip.MustParseAddr(v.from),
		giveWay: func(wait func(context.Context)) { wait(t.Context()) }}
	if v.login != "" {
		q.header = append(q.header, httpFields{{"Authorization", "Basic " + base64.StdEncoding.EncodeToString([]byte(v.login))}}...)
	}
	a := &httpAnswer{status: httpOK}
	b.srv.pages.answer(a, q)
	return a
}

func TestPages(t *testing.T) {
	b := newFTPBox(t, "", "")
	for _, tt := range []struct {
		target string
		status int
		body   string // contained
	}{
		{"/healthz", 200, "ok\n"},
		{"/readyz", 200, "ready\n"},
		{"/metrics", 200, "berth_build_info"},
		{"/", 200, "<h1>box</h1>"},
		{"/?format=html", 200, "<h1>box</h1>"},
		{"/?format=json", 200, `{"name":"box",`},
		{"/?refresh=5", 200, `<meta http-equiv="refresh" content="5">`},
		{"/?format=xml", 400, "format is html or json"},
		{"/?refresh=0", 400, "from 1 to 3600"},
		{"/?refresh=3601", 400, "from 1 to 3600"},
		{"/?refresh=5%3Burl=http://evil", 400, "from 1 to 3600"},
		{"/?%zz", 200, "<h1>box</h1>"},
		{"/favicon.ico", 404, "There is no such page"},
		{"/metrics/", 404, ""},
		{"/../metrics", 404, ""},
		{"//", 404, ""},
	} {
		if a := b.ask(t, tt.target, visitor{}); a.status != tt.status || !strings.Contains(a.body.String(), tt.body) {
			t.Errorf("%s: %d %.200q; want %d with %q", tt.target, a.status, a.body.String(), tt.status, tt.body)
		}
	}
	if page := b.ask(t, "/", visitor{}).body.String(); strings.Contains(page, "http-equiv") {
		t.Error("the page loads itself again without being asked to")
	}
	// What says who sends a request is not its headers.
	remote := visitor{from: "192.0.2.1", header: httpFields{{"X-Forwarded-For", "127.0.0.1"}, {"Forwarded", "for=127.0.0.1"}}}
	b.srv.current.Load().HTTP.Users = []string{"ann"}
	if a := b.ask(t, "/", remote); a.status != 403 {
		t.Errorf("with X-Forwarded-For: %d", a.status)
	}
}

// Who may read /metrics and the status page, from where, and how: every combination.
func TestPagesPasswords(t *testing.T) {
	for _, require := range []string{"remote", "none", "always"} {
		for _, from := range []string{"127.0.0.1", "::1", "192.0.2.1"} {
			for _, secure := range []bool{false, true} {
				synctest.Test(t, func(t *testing.T) {
					b := newFTPBox(t, fmt.Sprintf("http.users = [\"ann\", \"bob\", \"near\", \"nopass\", \"ghost\"]\ntls.require = %q\nlimits.login_failures = 1000000\n", require), "")
					b.user(t, "bob", "disabled = true\n")
					b.user(t, "near", "allow_from = [\"127.0.0.0/8\", \"::1\"]\n")
					b.user(t, "other", "")
					if err := os.WriteFile(filepath.Join(b.dir, "users.d", "nopass.toml"), []byte("home = \"/nowhere\"\n"), 0o600); err != nil {
						t.Fatal(err)
					}
					if err := b.srv.reload(); err != nil {
						t.Fatal(err)
					}
					compute := b.srv.auth.compute
					b.srv.auth.compute = func(h *passwordHash, password string) bool {
						return h != b.srv.auth.dummy && compute(h, password) // which takes its time, and fits nothing
					}
					loopback := from != "192.0.2.1"
					clear := !secure && (require == "always" || require == "remote" && !loopback)
					near := 401
					if loopback {
						near = 200
					}
					for _, tt := range []struct {
						login  string
						status int
						reason string // in the log
					}{
						{"", 401, ""},
						{"ann:secret", 200, ""},
						{"ann:wrong", 401, reasonPassword},
						{"ann:", 401, reasonPassword},
						{"ann", 401, ""}, // no colon
						{"near:secret", near, reasonNotAllowed},
						{"bob:secret", 401, reasonDisabled},
						{"nopass:", 401, reasonPassword},
						{"ghost:secret", 401, reasonUnknown},
						{"other:secret", 401, reasonNotAllowed}, // not in http.users
						{"other:wrong", 401, reasonNotAllowed},
						{"Ann:secret", 401, reasonUnknown},
					} {
						pages := []string{"/", "/metrics"}
						if require != "remote" { // one is enough
							pages = pages[:1]
						}
						for _, page := range pages {
							logged, began := len(b.log.String()), time.Now()
							want := tt.status
							if clear {
								want = 403
							}
							a := b.ask(t, page, visitor{from: from, secure: secure, login: tt.login})
							name := fmt.Sprintf("require %s, from %s, TLS %v, %q, %s", require, from, secure, tt.login, page)
							if a.status != want {
								t.Errorf("%s: %d %q, want %d", name, a.status, a.body.String(), want)
							}
							if asks := len(a.header.values("WWW-Authenticate")) == 1; asks != (want == 401) {
								t.Errorf("%s: WWW-Authenticate %v", name, a.header)
							}
							took := time.Since(began)
							if failed := want == 401 && tt.reason != ""; failed != (took >= firstDelay) {
								t.Errorf("%s: answered after %v", name, took)
							}
							if said := b.log.String()[logged:]; want == 401 && tt.reason != "" &&
								!strings.Contains(said, "msg=\"login failed\" user="+strings.Split(tt.login, ":")[0]+" addr="+from+" method=http reason="+tt.reason) {
								t.Errorf("%s: logged %q", name, said)
							}
						}
					}
					for page, want := range map[string]int{"/healthz": 200, "/readyz": 200, "/none": 404} {
						if a := b.ask(t, page, visitor{from: from, secure: secure}); a.status != want {
							t.Errorf("%s asks for a password: %d", page, a.status)
						}
					}
				})
			}
		}
	}
}

// A scraper with an old password is banned from the pages, and costs nobody behind the
// same address his files; nor do failures there keep the scraper out.
func TestPagesBan(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newFTPBox(t, "http.users = [\"ann\"]\ntls.require = \"none\"\nlimits.login_failures = 3\n", "")
		right, wrong := visitor{from: "192.0.2.1", login: "ann:secret"}, visitor{from: "192.0.2.1", login: "ann:wrong"}
		for range 3 {
			if a := b.ask(t, "/", wrong); a.status != 401 {
				t.Errorf("a wrong password: %d", a.status)
			}
		}
		a := b.ask(t, "/metrics", right)
		if after := a.header.values("Retry-After"); a.status != 429 || len(after) != 1 || after[0] == "0" {
			t.Errorf("a banned address: %d, Retry-After %q", a.status, after)
		}
		c := b.dialFrom(t, netip.MustParseAddr("192.0.2.1"), testLocal, "control")
		c.want("220 *")
		c.cmd("USER ann", "331 *")
		c.cmd("PASS secret", "230 *")
		if a := b.ask(t, "/metrics", visitor{from: "192.0.2.2", login: "ann:secret"}); a.status != 200 {
			t.Errorf("another address: %d", a.status)
		}
		if a := b.ask(t, "/healthz", visitor{from: "192.0.2.1"}); a.status != 200 {
			t.Errorf("/healthz for a banned address: %d", a.status)
		}
		time.Sleep(10 * time.Minute)
		if a := b.ask(t, "/metrics", right); a.status != 200 {
			t.Errorf("after the ban: %d", a.status)
		}
		camera := netip.MustParseAddr("192.0.2.9")
		for range 3 {
			c := b.dialFrom(t, camera, testLocal, "control")
			c.want("220 *")
			c.cmd("USER ann", "331 *")
			c.cmd("PASS wrong", "530 *")
		}
		b.dialFrom(t, camera, testLocal, "control").want("421 Too many failed logins*")
		if a := b.ask(t, "/metrics", visitor{from: camera.String(), login: "ann:secret"}); a.status != 200 {
			t.Errorf("the scraper behind a camera with an old password: %d", a.status)
		}
	})
}

// A scrape every 15 seconds costs a hash every five minutes.
func TestPagesRememberPasswords(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newFTPBox(t, "http.users = [\"ann\"]\n", "")
		hashes, compute := 0, b.srv.auth.compute
		b.srv.auth.compute = func(h *passwordHash, password string) bool { hashes++; return compute(h, password) }
		for range 4 * 60 {
			if a := b.ask(t, "/readyz", visitor{}); a.status != 200 {
				t.Fatal(a.status)
			}
			if a := b.ask(t, "/metrics?name[]=berth_bans", visitor{login: "ann:secret"}); a.status != 200 {
				t.Fatal(a.status)
			}
			time.Sleep(15 * time.Second)
		}
		if hashes != 12 {
			t.Errorf("%d hashes in an hour, want 12", hashes)
		}
	})
}

// Whoever guesses passwords on all connections there may be keeps nobody out: his
// connections, which wait for the answer to a wrong one, give way.
func TestPagesGuessersGiveWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newFTPBox(t, "http.users = [\"ann\"]\ntls.require = \"none\"\n", "")
		s := newHTTPServer(b.srv.pages.answer, func() { t.Error("a panic") }, slog.New(slog.DiscardHandler))
		dial := func() net.Conn {
			near, far := net.Pipe()
			go s.serve(far)
			return near
		}
		guess := "GET / HTTP/1.1\r\nHost: box\r\nAuthorization: Basic " + base64.StdEncoding.EncodeToString([]byte("ann:wrong")) + "\r\n\r\n"
		var guessers []net.Conn
		for range httpConnLimit {
			c := dial()
			io.WriteString(c, guess)
			guessers = append(guessers, c)
			time.Sleep(time.Millisecond)
		}
		synctest.Wait()
		began := time.Now()
		c := dial()
		io.WriteString(c, "GET /healthz HTTP/1.1\r\nHost: box\r\n\r\n")
		if a, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil || a.StatusCode != 200 || time.Since(began) > 0 {
			t.Errorf("/healthz among guessers: %v after %v", err, time.Since(began))
		}
		if _, err := guessers[0].Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("the guesser who has waited longest: %v, want his end", err)
		}
		if a, err := http.ReadResponse(bufio.NewReader(guessers[1]), nil); err != nil || a.StatusCode != 401 || time.Since(began) < firstDelay/2 {
			t.Errorf("another: %v, after %v", err, time.Since(began))
		}
		for _, c := range append(guessers[1:], c) { // their answers are nobody's to wait for
			go io.Copy(io.Discard, c)
		}
		s.shutdown() // without waiting for the others' seconds
		if time.Since(began) > maxDelay+time.Second {
			t.Errorf("the end took %v", time.Since(began))
		}
	})
}

// /healthz is 503 while a listener does not take connections, says which, and tries
// no more often than its answer is kept.
func TestHealthz(t *testing.T) {
	for _, kind := range []string{"control", "tls", "local", "http"} {
		l := &lameListener{stuck: make(chan struct{})}
		b := newFTPBox(t, fmt.Sprintf("server.drain = \"1s\"\nlisten = { control = [\"127.0.0.1:0\"], tls = [\"127.0.0.1:0\"], datagram = [], http = [\"127.0.0.1:0\"], local = [%q] }\n", filepath.Join(shortDir(t), "s")), "")
		if err := b.srv.open(false); err != nil {
			t.Fatal(err)
		}
		for i, k := range b.srv.sockets {
			if k.kind == kind {
				l.Listener = k.stream
				b.srv.sockets[i].stream = l
			}
		}
		b.srv.serve()
		t.Cleanup(func() { b.srv.shutdown(nil) })
		// The longer the others have, the less can keep them from answering besides what is looked for.
		for b.srv.pages.within = 100 * time.Millisecond; ; b.srv.pages.within *= 4 {
			a := b.ask(t, "/healthz", visitor{})
			if a.status == 503 && strings.HasPrefix(a.body.String(), "not well: "+kind+" ") {
				break
			}
			if b.srv.pages.within > replyTime/4 {
				t.Fatalf("%s is stuck: %d %q", kind, a.status, a.body.String())
			}
			b.srv.pages.healthAt = time.Time{}
		}
		for range 2 { // from what was found before
			if a := b.ask(t, "/healthz", visitor{}); a.status != 503 || !strings.HasPrefix(a.body.String(), "not well: "+kind+" ") {
				t.Errorf("%s is stuck: %d %q", kind, a.status, a.body.String())
			}
		}
		if a := b.ask(t, "/readyz", visitor{}); a.status != 200 {
			t.Errorf("%s is stuck: readyz %d", kind, a.status)
		}
		close(l.stuck)
		b.srv.pages.healthAt = time.Time{}
		b.srv.pages.within = replyTime
		if a := b.ask(t, "/healthz", visitor{}); a.status != 200 || a.body.String() != "ok\n" {
			t.Errorf("%s answers: %d %q", kind, a.status, a.body.String())
		}
	}
}

// However many ask, the daemon connects to itself once in healthKept.
func TestHealthzIsKept(t *testing.T) {
	b := newFTPBox(t, "server.drain = \"1s\"\nlisten = { control = [\"127.0.0.1:0\"], datagram = [], http = [], local = [] }\n", "")
	b.serveReal(t)
	a := b.ask(t, "/healthz", visitor{})
	b.srv.pages.healthAt = time.Now().Add(time.Minute) // the next moments are within healthKept however long they are
	b.srv.sockets[0].stream.Close()                    // which would be seen, were it looked at
	if again := b.ask(t, "/healthz", visitor{}); a.body.String() != "ok\n" || again.body.String() != "ok\n" {
		t.Errorf("%q, then %q", a.body.String(), again.body.String())
	}
	// Where the listener cannot be reached, nobody who restarts the daemon is to be
	// told that this would help.
	b.srv.pages.healthAt = time.Now().Add(-healthKept)
	if a := b.ask(t, "/healthz", visitor{}); a.status != 200 || !strings.HasPrefix(a.body.String(), "ok, but not every listener could be tried: control ") {
		t.Errorf("%d %q", a.status, a.body.String())
	}
}

// While the daemon drains the pages answer, and /readyz says why nobody is let in.
func TestReadyzWhileDraining(t *testing.T) {
	b := newFTPBox(t, "server.drain = \"20s\"\nlisten = { control = [\"127.0.0.1:0\"], datagram = [], http = [\"127.0.0.1:0\"], local = [] }\n", "")
	*b.srv.ports = b.real
	if err := b.srv.open(false); err != nil {
		t.Fatal(err)
	}
	b.srv.serve()
	at := map[string]net.Addr{}
	for _, k := range b.srv.sockets {
		at[k.kind] = k.addr()
	}
	get := func(page string) string {
		all := askHTTP(t, at["http"].String(), "GET "+page+" HTTP/1.0\r\n\r\n")
		if len(all) != 1 {
			return "nothing"
		}
		text, _ := io.ReadAll(all[0].Body)
		return fmt.Sprintf("%d %s", all[0].StatusCode, text)
	}
	if got := get("/readyz"); got != "200 ready\n" {
		t.Errorf("before: %q", got)
	}
	c := b.dialReal(t, at["control"]).login()
	c.cmd("EPSV", "229 *")
	data := c.open()
	c.cmd("STOR kept", "150 *")
	idle, err := net.Dial("tcp", at["http"].String())
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	over := make(chan struct{})
	go func() { b.srv.shutdown(nil); close(over) }()
	waitUntil(t, "/readyz says that the daemon drains", func() bool { return get("/readyz") == "503 not ready: draining\n" })
	for page, want := range map[string]string{"/healthz": "200 ok\n", "/metrics": "200 # HELP", "/?format=json": `200 {"name":"box"`, "/": "200 <!DOCTYPE"} {
		if got := get(page); !strings.HasPrefix(got, want) {
			t.Errorf("%s while draining: %.80q, want %q", page, got, want)
		}
	}
	if got := get("/?format=json"); !strings.Contains(got, `"state":"draining"`) {
		t.Errorf("the status page: %q", got)
	}
	io.WriteString(data, "kept")
	data.Close()
	c.want("226 *")
	c.cmd("QUIT", "221 *")
	<-over
	if c, err := net.Dial("tcp", at["http"].String()); err == nil {
		c.Close()
		t.Error("the pages are there after the end")
	}
}

// A state directory that cannot be written is a reason not to be sent new clients.
func TestReadyzStateDirectory(t *testing.T) {
	b := newFTPBox(t, "", "")
	state := b.srv.config().Server.StateDir
	if err := os.Rename(state, state+".away"); err != nil {
		t.Fatal(err)
	}
	if a := b.ask(t, "/readyz", visitor{}); a.status != 503 || !strings.HasPrefix(a.body.String(), "not ready: the state directory cannot be written: ") || strings.Contains(a.body.String(), state) {
		t.Errorf("without it: %d %q", a.status, a.body.String())
	}
	if err := os.Rename(state+".away", state); err != nil {
		t.Fatal(err)
	}
	if a := b.ask(t, "/readyz", visitor{}); a.status != 200 {
		t.Errorf("with it: %d %q", a.status, a.body.String())
	}
}

// A listener that somebody else ends, as "ss -K" does, listens again: nobody has to
// restart the daemon for it, which with a socket of systemd's would not help.
func TestListenersEndedByOthers(t *testing.T) {
	b := newFTPBox(t, "server.drain = \"1s\"\nlisten = { control = [\"127.0.0.1:0\"], datagram = [], http = [\"[::1]:0\"], local = [] }\n", "")
	addrs := b.serveReal(t)
	for i, k := range b.srv.sockets {
		for range 2 {
			if err := onDescriptor(k.stream, func(fd int) error { return unix.Shutdown(fd, unix.SHUT_RDWR) }); err != nil {
				t.Fatal(err)
			}
			waitUntil(t, k.kind+" to listen again", func() bool {
				c, err := net.Dial("tcp", addrs[i].String())
				if err == nil {
					c.Close()
				}
				return err == nil
			})
		}
	}
	b.dialReal(t, addrs[0]).want("220 *")
	if a := askHTTP(t, addrs[1].String(), "GET /readyz HTTP/1.0\r\n\r\n"); len(a) != 1 || a[0].StatusCode != 200 {
		t.Errorf("readyz: %v", a)
	}
	if got := b.log.String(); !strings.Contains(got, "cannot accept connections") {
		t.Error("nothing is logged")
	}
	// What ends it for good is no lack of descriptors, nor something on the way.
	ln := b.srv.sockets[0].stream
	for range 2 {
		if stuck(ln, false) {
			t.Error("a listener that listens is said to be ended")
		}
	}
	idle, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	if stuck(idle, true) {
		t.Error("a listener with an empty queue is said to be stuck")
	}
	onDescriptor(idle, func(fd int) error { return unix.Shutdown(fd, unix.SHUT_RDWR) })
	if !stuck(idle, false) {
		t.Error("a listener that was ended is said to listen")
	}
}

// A web page on the internet whose name was made to lead to this machine reads nothing
// by way of a browser here. Other names do where the operator has opened the listener.
func TestPagesHost(t *testing.T) {
	hostname, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	serve := func(listen, more string) string {
		b := newFTPBox(t, "server.drain = \"1s\"\nlisten = { control = [], datagram = [], http = [\""+listen+"\"], local = [] }\n"+more, "")
		_, port, _ := net.SplitHostPort(b.serveReal(t)[0].String())
		return net.JoinHostPort("127.0.0.1", port)
	}
	here := serve("127.0.0.1:0", "")
	for host, want := range map[string]int{
		"Host: localhost\r\n": 200, "Host: LocalHost:9621\r\n": 200, "Host: a.localhost\r\n": 200, "Host: ip6-localhost\r\n": 200,
		"Host: 127.0.0.1:9621\r\n": 200, "Host: 192.0.2.1\r\n": 200, "Host: [::1]:9621\r\n": 200, "Host: box.example.org.:80\r\n": 403, "Host: box:80\r\n": 200,
		"Host: " + hostname + "\r\n": 200, "Host: " + hostname + ".local\r\n": 200, "Host: \r\n": 200, "": 200,
		"Host: evil.example\r\n": 403, "Host: evil.example:9621\r\n": 403, "Host: localhost.evil.example\r\n": 403, "Host: xbox.example.org\r\n": 403,
		"Host: 127.0.0.1.evil.example\r\n": 403, "Host: evil.example.\r\n": 403, "Host: " + hostname + ".evil.example\r\n": 403,
	} {
		for _, page := range []string{"/", "/metrics", "/?format=json"} {
			if a := askHTTP(t, here, "GET "+page+" HTTP/1.0\r\n"+host+"\r\n"); len(a) != 1 || a[0].StatusCode != want {
				t.Errorf("%s with %q: %v, want %d", page, host, a, want)
			}
		}
		if a := askHTTP(t, here, "GET /healthz HTTP/1.0\r\n"+host+"\r\n"); len(a) != 1 || a[0].StatusCode != 200 {
			t.Errorf("/healthz with %q: %v", host, a)
		}
	}
	if a := askHTTP(t, here, "GET http://evil.example/ HTTP/1.1\r\nHost: localhost\r\n\r\n"); len(a) != 1 || a[0].StatusCode != 403 {
		t.Errorf("a target with a name: %v", a)
	}
	const evil = "GET / HTTP/1.0\r\nHost: metrics.example\r\n"
	if a := askHTTP(t, serve("0.0.0.0:0", ""), evil+"\r\n"); len(a) != 1 || a[0].StatusCode != 200 {
		t.Errorf("a listener for all: %v", a)
	}
	login := "Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte("ann:secret")) + "\r\n"
	if a := askHTTP(t, serve("127.0.0.1:0", "http.users = [\"ann\"]\n"), evil+login+"\r\n"); len(a) != 1 || a[0].StatusCode != 200 {
		t.Errorf("with a password: %v", a)
	}
}

// What /etc/hosts calls this machine is a name of its own, and no name beside it is.
func TestPagesOwnName(t *testing.T) {
	file := filepath.Join(t.TempDir(), "hosts")
	text := "127.0.0.1 localhost\n127.0.1.1\tBox.example.net box # 127.0.0.1 comment.example\n192.0.2.1 router.example\n0.0.0.0 ads.example\n" +
		"#127.0.0.1 off.example\n::1 six.example\nnonsense words.example\n127.0.0.1\n192.0.2.9 twice.example\n127.0.0.1 twice.example BOX\n127.0.0.1 tracker.example"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"box.example.net": true, "six.example": false, "tracker.example": false, "twice.example": true, "box.example": false, "router.example": false,
		"ads.example": false, "comment.example": false, "off.example": false, "words.example": false, "127.0.1.1": false} {
		if got := isOwnName(file, name, "Box"); got != want {
			t.Errorf("%s is our own: %v, want %v", name, got, want)
		}
	}
	if isOwnName(file+"none", "box.example.net", "Box") {
		t.Error("without a file")
	}
	if err := os.Truncate(file, maxHostsFile+1); err != nil || isOwnName(file, "box.example.net", "Box") {
		t.Error("a file without end is read", err)
	}
}

// A daemon without descriptors is well, as a restart would mend nothing, and not
// ready, as no new session has a place.
func TestHealthzWithoutDescriptors(t *testing.T) {
	t.Parallel()
	file, _ := writeConfig(t, daemonListen+quickDrain)
	p := serveBerth(t, file, nil)
	c, err := net.Dial("tcp", p.addrs["http"])
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(replyTime))
	r := bufio.NewReader(c)
	get := func(page string) string {
		t.Helper()
		io.WriteString(c, "GET "+page+" HTTP/1.1\r\nHost: box\r\n\r\n")
		a, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(a.Body)
		return fmt.Sprintf("%d %s", a.StatusCode, text)
	}
	if got := get("/readyz"); got != "200 ready\n" {
		t.Errorf("before: %q", got)
	}
	var was unix.Rlimit
	pid := p.cmd.Process.Pid
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &was); err != nil {
		t.Fatal(err)
	}
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: was.Max}, nil); err != nil {
		t.Fatal(err)
	}
	waits, err := net.Dial("tcp", p.addrs["control"])
	if err != nil {
		t.Fatal(err)
	}
	defer waits.Close()
	p.logged("cannot accept connections")
	if got := get("/healthz"); !strings.HasPrefix(got, "200 ok, but no file descriptor is free") {
		t.Errorf("healthz: %q", got)
	}
	if got := get("/readyz"); !strings.HasPrefix(got, "503 not ready: no file descriptor is free") {
		t.Errorf("readyz: %q", got)
	}
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &was, nil); err != nil {
		t.Fatal(err)
	}
	waits.SetDeadline(time.Now().Add(replyTime))
	if line, err := bufio.NewReader(waits).ReadString('\n'); !strings.HasPrefix(line, "220 ") {
		t.Errorf("who waited meanwhile: %q, %v", line, err)
	}
	p.signal(syscall.SIGTERM)
}

// The last descriptors are for those who are to hear that there are no others: probes
// and the operator are answered, clients are told at once, and neither a session nor its
// data connection takes what is kept.
func TestDescriptorsAreKept(t *testing.T) {
	t.Parallel()
	file, _ := writeConfig(t, fmt.Sprintf("log.format = \"json\"\nlisten = { control = [\"127.0.0.1:0\"], datagram = [], http = [\"127.0.0.1:0\"], local = [%q] }\n", filepath.Join(shortDir(t), "s"))+quickDrain)
	p := serveBerth(t, file, nil)
	pid := p.cmd.Process.Pid
	var was unix.Rlimit
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &was); err != nil {
		t.Fatal(err)
	}
	limit := func(n int) {
		t.Helper()
		if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(n), Max: was.Max}, nil); err != nil {
			t.Fatal(err)
		}
	}
	open := func() int {
		all, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		if err != nil {
			t.Fatal(err)
		}
		return len(all)
	}
	limit(80)
	c := p.dial("control").login()
	refused := ""
	for range 80 {
		if refused, _ = p.dial("control").line(replyTime); !strings.HasPrefix(refused, "220 ") {
			break
		}
	}
	if !strings.HasPrefix(refused, "421 Too many connections") {
		t.Errorf("the last session: %q", refused)
	}
	if n := open(); n < 50 || n > 62 {
		t.Errorf("%d of 80 descriptors are open, and 20 are kept", n)
	}
	for range 3 { // and stays so, as long as it is so
		for page, want := range map[string]string{"/healthz": "200 ok, but no file descriptor is free", "/readyz": "503 not ready: no file descriptor is free",
			"/?format=json": "200 {\"name\":\"berth\"", "/metrics": "200 "} {
			a := askHTTP(t, p.addrs["http"], "GET "+page+" HTTP/1.0\r\n\r\n")
			text, _ := io.ReadAll(a[0].Body)
			if got := fmt.Sprintf("%d %s", a[0].StatusCode, text); !strings.HasPrefix(got, want) {
				t.Errorf("%s: %.200q", page, got)
			}
			if page == "/metrics" && !strings.Contains(string(text), "\nprocess_open_fds ") {
				t.Error("/metrics does not tell how many are open")
			}
		}
	}
	p.dial("local").want("220 *") // root, and who runs the daemon
	c.cmd("EPSV", "229 *")
	limit(open() + 3) // three are free, and all are kept
	c.cmd("EPSV", "4*")
	c.cmd("NOOP", "200 *")
	limit(int(was.Cur))
	c.cmd("EPSV", "229 *")
	if a := askHTTP(t, p.addrs["http"], "GET /healthz HTTP/1.0\r\n\r\n"); a[0].StatusCode != 200 {
		t.Errorf("afterwards: %v", a[0])
	}
	p.signal(syscall.SIGTERM)
}

// With http.tls the pages have the certificate of [tls], also a new one, and whoever
// forgets the s of https is told.
func TestPagesTLS(t *testing.T) {
	b := newFTPBox(t, "server.drain = \"1s\"\nhttp = { tls = true, users = [\"ann\"] }\ntls = { session_reuse = \"on\" }\nlisten = { control = [], datagram = [], http = [\"127.0.0.1:0\"], local = [] }\n", "")
	addr := b.serveReal(t)[0].String()
	dial := func(protocols ...string) (*tls.Conn, error) {
		return tls.DialWithDialer(&net.Dialer{Timeout: replyTime}, "tcp", addr, &tls.Config{InsecureSkipVerify: true, NextProtos: protocols})
	}
	for _, offered := range [][]string{nil, {"h2", "http/1.1"}, {"http/1.0"}} {
		c, err := dial(offered...)
		if err != nil {
			t.Errorf("ALPN %q: %v", offered, err)
			continue
		}
		if st := c.ConnectionState(); fingerprintOf(st.PeerCertificates[0].Raw) != b.srv.keys.fingerprint() || st.Version != tls.VersionTLS13 ||
			offered != nil && st.NegotiatedProtocol != offered[len(offered)-1] {
			t.Errorf("ALPN %q: %q in %x", offered, st.NegotiatedProtocol, st.Version)
		}
		io.WriteString(c, "GET /metrics HTTP/1.0\r\nAuthorization: Basic "+base64.StdEncoding.EncodeToString([]byte("ann:secret"))+"\r\n\r\n")
		if answer, err := io.ReadAll(c); err != nil || !bytes.Contains(answer, []byte("berth_build_info")) { // and not cut short: close_notify came
			t.Errorf("ALPN %q: %v, %.80q", offered, err, answer)
		}
		c.Close()
	}
	for _, offered := range []string{"ftp", "h2"} { // ALPACA: nobody is to take one service for another
		if c, err := dial(offered); err == nil {
			c.Close()
			t.Errorf("a client of %s is let in", offered)
		}
	}
	for _, words := range []string{"GET / HTTP/1.1\r\nHost: box\r\n\r\n", "GET / HTTP/1.0\r\n\r\n", "USER ann\r\n"} {
		all := askHTTP(t, addr, words)
		if len(all) != 1 || all[0].StatusCode != 400 || !strings.HasPrefix(all[0].Header.Get("Content-Type"), "text/plain") {
			t.Fatalf("%q without TLS: %v", words, all)
		}
		if text, _ := io.ReadAll(all[0].Body); !strings.Contains(string(text), "https://") {
			t.Errorf("%q without TLS: %q", words, text)
		}
	}
	if status, answer, err := askHealthz(addr, true); status != 200 || string(answer) != "ok" {
		t.Errorf("berth health: %d %q %v", status, answer, err)
	}

	old := b.srv.keys.fingerprint()
	pair, key, err := selfSigned("other")
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string][]byte{"cert.pem": pair, "key.pem": key} {
		if err := os.WriteFile(filepath.Join(b.srv.config().Server.StateDir, "tls", name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	b.srv.keys.checked.Store(-int64(tlsCheckEvery)) // the next look is due
	c, err := dial()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if fingerprintOf(c.ConnectionState().PeerCertificates[0].Raw) == old {
		t.Error("the old certificate is shown after the files have changed")
	}
}

// Who connects and does not shake hands is let go, and the end waits for nobody's.
func TestPagesTLSTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newFTPBox(t, "", "")
		s := quietHTTPServer(b.srv.pages.answer)
		s.secure = b.srv.keys.pages
		near, far := net.Pipe()
		defer near.Close()
		began := time.Now()
		go io.WriteString(near, "\x16\x03\x01\x02\x00")
		s.serve(far)
		if took := time.Since(began); took != httpHeaderTimeout {
			t.Errorf("it ended after %v, want %v", took, httpHeaderTimeout)
		}
		near, far = net.Pipe()
		defer near.Close()
		go s.serve(far)
		synctest.Wait()
		s.shutdown()
	})
}

// What berth check and the start of the daemon say about [http].
func TestHTTPNotes(t *testing.T) {
	us := []*user{{Name: "ann", hash: &passwordHash{}}, {Name: "bob", Disabled: true}, {Name: "key"}}
	for _, tt := range []struct {
		name   string
		change func(*config)
		want   []string
	}{
		{"nobody is named", func(c *config) { c.HTTP.Users = nil; c.Listen.HTTP = []string{"[::]:9621"} }, nil},
		{"good", func(*config) {}, nil},
		{"no listener", func(c *config) { c.HTTP.Users = []string{"none"}; c.Listen.HTTP = nil }, nil},
		{"who is not there", func(c *config) { c.HTTP.Users = []string{"ann", "none"} }, []string{"berth user add none"}},
		{"disabled", func(c *config) { c.HTTP.Users = []string{"bob"} }, []string{"bob, who is disabled"}},
		{"no password", func(c *config) { c.HTTP.Users = []string{"key"} }, []string{"berth user passwd key"}},
		{"clear text", func(c *config) { c.Listen.HTTP = []string{"127.0.0.1:1", "192.168.1.5:9621"} }, []string{"set http.tls = true"}},
		{"all addresses", func(c *config) { c.Listen.HTTP = []string{":9621"} }, []string{"set http.tls = true"}},
		{"by name", func(c *config) { c.Listen.HTTP = []string{"localhost:9621"} }, nil},
		{"TLS", func(c *config) { c.Listen.HTTP = []string{"[::]:9621"}; c.HTTP.TLS = true }, nil},
		{"clear text is wanted", func(c *config) { c.Listen.HTTP = []string{"[::]:9621"}; c.TLS.Require = "none" }, nil},
		{"never in clear text", func(c *config) { c.TLS.Require = "always" }, []string{"nobody can read /metrics"}},
	} {
		cfg := defaultConfig()
		cfg.HTTP.Users = []string{"ann"}
		tt.change(cfg)
		got := httpNotes(cfg, us)
		ok := len(got) == len(tt.want)
		for i := range min(len(got), len(tt.want)) {
			ok = ok && strings.Contains(got[i], tt.want[i])
		}
		if !ok {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}
