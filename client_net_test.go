package main

// chat, time, ping and discover against the real server on loopback; what strangers
// might answer comes from sockets of the tests' own.

import (
	"encoding/json"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestClientTime(t *testing.T) {
	b := newClientBox(t, "", "")
	for _, words := range [][]string{{"time"}, {"time", "-q"}, {"time", "--json"}} {
		r := b.verb(t, nil, words...)
		if r.code != 0 || r.errs != "" {
			t.Fatalf("%q: %+v", words, r)
		}
		if len(words) == 1 && !wildcard("127.0.0.1: * UTC, 0.* s * the clock here, give or take 0.* s\n", r.out) {
			t.Errorf("%q", r.out)
		}
		if words[len(words)-1] == "-q" {
			at, err := time.Parse(time.RFC3339Nano, strings.TrimSpace(r.out))
			if d := time.Since(at); err != nil || d < 0 || d > time.Minute {
				t.Errorf("%q, %v", r.out, err)
			}
		}
		if words[len(words)-1] == "--json" {
			var line struct{ Ahead, Give_or_take *float64 }
			if err := json.Unmarshal([]byte(r.out), &line); err != nil || line.Ahead == nil || line.Give_or_take == nil || *line.Give_or_take <= 0 || *line.Ahead > *line.Give_or_take {
				t.Errorf("%q: %v", r.out, err)
			}
		}
	}
	if r := b.verb(t, nil, "time", "ann@127.0.0.1:2", "nobody@127.0.0.1"); r.code == 0 || strings.Count(r.errs, "\n") != 2 {
		t.Errorf("%+v", r)
	}
}

// datagramBox is the datagram service alone, and the environment to find it.
func datagramBox(t *testing.T, info helloInfo) (port string) {
	t.Helper()
	conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	answering := make(chan struct{})
	d := newDatagramService(func() helloInfo { return info }, func(string, string) {}, nil)
	go func() {
		defer close(answering)
		d.serve(t.Context(), conn)
	}()
	t.Cleanup(func() { <-answering })
	port = strconv.Itoa(conn.LocalAddr().(*net.UDPAddr).Port)
	t.Setenv("HOME", t.TempDir())
	t.Setenv("XDG_CONFIG_HOME", "")
	t.Setenv("BERTH_URL", "berth://ann@127.0.0.1:"+port)
	return port
}

func TestClientByDatagram(t *testing.T) {
	port := datagramBox(t, helloInfo{Name: "box\x1b[2J", Version: "1.0", Ports: helloPorts{Control: 2121, Datagram: 9}, Fingerprint: "sha256:" + strings.Repeat("ab", 32)})
	b := &clientBox{}
	if r := b.verb(t, nil, "time", "--udp"); r.code != 0 || !wildcard("127.0.0.1: * UTC, 0.* s * the clock here, give or take 0.* s\n", r.out) {
		t.Errorf("time: %+v", r)
	}
	if r := b.verb(t, nil, "ping", "--udp", "-c", "3", "-i", "1ms"); r.code != 0 || strings.Count(r.out, "answer ") != 3 || !strings.Contains(r.out, "3 sent, 3 came back, 0% lost; shortest ") {
		t.Errorf("ping: %+v", r)
	}
	want := `*box\x1b[2J*127.0.0.1:2121*1.0*sha256:ab*` + "\n"
	if r := b.verb(t, nil, "discover", "-p", port, "127.0.0.1"); r.code != 0 || !wildcard(want, r.out) {
		t.Errorf("discover: %+v", r)
	}
	var found foundBox
	r := b.verb(t, nil, "discover", "-p", port, "--json", "127.0.0.1")
	if err := json.Unmarshal([]byte(r.out), &found); err != nil || found.Address != "127.0.0.1:2121" || found.Version != "1.0" || strings.ContainsRune(r.out, 0x1b) {
		t.Errorf("discover --json: %+v, %v", r, err)
	}
	if r := b.verb(t, nil, "discover", "-w", "100ms", "-p", port); r.code != 0 || !strings.Contains(r.out, "127.0.0.1:2121") {
		t.Errorf("discover on all networks: %+v", r)
	}
}

func TestClientNobodyAnswersByDatagram(t *testing.T) {
	conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	port := strconv.Itoa(conn.LocalAddr().(*net.UDPAddr).Port)
	conn.Close() // so that the kernel says so at once
	t.Setenv("HOME", t.TempDir())
	t.Setenv("BERTH_URL", "berth://ann@127.0.0.1:"+port)
	b := &clientBox{}
	for _, words := range [][]string{{"time", "--udp"}, {"discover", "-w", "20ms", "-p", port, "127.0.0.1"}} {
		if r := b.verb(t, nil, words...); r.code != exitNoConn || r.out != "" || !strings.Contains(r.errs, "answer") {
			t.Errorf("%q: %+v", words, r)
		}
	}
	if r := b.verb(t, nil, "discover", "no such host"); r.code != exitUsage {
		t.Errorf("%+v", r)
	}
}

// What strangers answer is neither believed nor shown as it is.
func TestCollectHellos(t *testing.T) {
	conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	box, err := net.DialUDP("udp", nil, conn.LocalAddr().(*net.UDPAddr))
	if err != nil {
		t.Fatal(err)
	}
	defer box.Close()
	other, err := net.DialUDP("udp", nil, conn.LocalAddr().(*net.UDPAddr))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	other.Write([]byte(`{"name":"from another port"}`))
	for _, answer := range []string{
		"", "{}", "[]", "null", `{"name":5}`, `{"name":""}`, `{"name":"cut`, strings.Repeat("x", 10_000),
		`{"name":"` + strings.Repeat("n", 300) + `","version":"\u001b[31m","fingerprint":"` + strings.Repeat("f", 300) + `","ports":{"control":70000}}`,
		`{"name":"b","ports":{"control":21},"version":"2"}`,
		`{"name":"b","ports":{"control":21},"version":"2"}`, // by another of its addresses, say
		`{"name":"a","ports":{"tls":990}}`,
	} {
		box.Write([]byte(answer))
	}
	port := uint16(box.LocalAddr().(*net.UDPAddr).Port)
	found := collectHellos(conn, port, 3, func(a netip.Addr) bool { return a.IsLoopback() })
	if len(found) != 3 || found[0] != (foundBox{"a", "127.0.0.1:990", "", ""}) || found[1] != (foundBox{"b", "127.0.0.1:21", "2", ""}) ||
		found[2].Address != "127.0.0.1" || len(found[2].Name) > 70 || len(found[2].Fingerprint) > 90 || found[2].Version != `\x1b[31m` {
		t.Errorf("%+v", found)
	}
}

func TestBroadcastOf(t *testing.T) {
	for _, c := range []struct{ network, want string }{
		{"192.168.1.20/24", "192.168.1.255"}, {"10.1.2.3/8", "10.255.255.255"}, {"172.16.5.5/20", "172.16.15.255"}, {"10.0.0.1/32", "10.0.0.1"},
	} {
		ip, n, err := net.ParseCIDR(c.network)
		if err != nil {
			t.Fatal(err)
		}
		if got := broadcastOf(ip.To4(), n.Mask); got.String() != c.want {
			t.Errorf("%s: %v; want %s", c.network, got, c.want)
		}
	}
}

func TestClientPing(t *testing.T) {
	b := newClientBox(t, "", "")
	if r := b.verb(t, nil, "ping", "-c", "3", "-i", "1ms"); r.code != 0 || strings.Count(r.out, " from 127.0.0.1: ") != 3 || !strings.Contains(r.out, "3 sent, 3 came back, 0% lost") {
		t.Errorf("%+v", r)
	}
	r := b.verb(t, nil, "ping", "-c", "2", "-i", "1ms", "--json")
	if lines := strings.Split(strings.TrimSpace(r.out), "\n"); len(lines) != 3 || !strings.Contains(lines[2], `"received":2`) {
		t.Errorf("%+v", r)
	}
	if r := b.verb(t, nil, "ping", "-q", "-c", "1"); r.code != 0 || strings.Count(r.out, "\n") != 1 {
		t.Errorf("%+v", r)
	}
	// The connection breaks in the middle.
	out := &writerFunc{func(p []byte) { b.cut() }}
	inv := clientInvocation(t, nil, out, io.Discard, "ping", "-c", "0", "-i", "1ms")
	if err := runAsCalled(inv, io.Discard); exitCode(err) != exitNoConn {
		t.Errorf("%v", err)
	}
}

// A writerFunc is a writer that is told.
type writerFunc struct{ f func(p []byte) }

func (w *writerFunc) Write(p []byte) (int, error) { w.f(p); return len(p), nil }

func TestClientChat(t *testing.T) {
	b := newClientBox(t, "", "")
	b.user(t, "bob", "")
	b.srv.reload()
	// Somebody listens, and what he hears is fit to be shown.
	pr, pw := io.Pipe()
	heard := make(chan string, 10)
	inv := clientInvocation(t, pr, &writerFunc{func(p []byte) { heard <- string(p) }}, io.Discard, "chat", "-p", b.port, "bob@127.0.0.1")
	ended := make(chan error, 1)
	go func() { ended <- inv.verb.run(inv) }()
	io.WriteString(pw, "is anybody here?\n\n")
	if s := <-heard; !wildcard("*bob: is anybody here?\n", s) {
		t.Errorf("%q", s)
	}
	for _, c := range []struct{ words, said, out, hears string }{
		{"", "going home\n", "* ann: going home\n", "* ann: going home\n"},
		{"-q", "in silence\n", "", "* ann: in silence\n"},
		{"--json", "\xff\x1b[2J in JSON\n", `{"from":"ann","text":"*in JSON","time":"*"}` + "\n", "* in JSON\n"},
		{"", "two\nlines\n", "* two\n*lines\n", "* ann: two\n"},
	} {
		words := []string{"chat"}
		if c.words != "" {
			words = append(words, c.words)
		}
		if r := b.verb(t, strings.NewReader(c.said), words...); r.code != 0 || !wildcard(c.out, r.out) || r.errs != "" {
			t.Errorf("%q: %+v", c.said, r)
		}
		if s := <-heard; !wildcard(c.hears, s) || strings.ContainsRune(s, 0x1b) {
			t.Errorf("%q was heard as %q", c.said, s)
		}
	}
	if r := b.verb(t, strings.NewReader(strings.Repeat("x", 1001)+"\n"), "chat"); r.code != exitFailed {
		t.Errorf("%+v", r)
	}
	pw.Close()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	// Or the box goes.
	pr, pw = io.Pipe()
	defer pw.Close()
	inv = clientInvocation(t, pr, &writerFunc{func([]byte) { b.cut() }}, io.Discard, "chat")
	go io.WriteString(pw, "hello\n")
	if err := inv.verb.run(inv); exitCode(err) != exitNoConn {
		t.Error(err)
	}
}

func TestShownMessage(t *testing.T) {
	got := shownMessage(&messageFrame{From: "a\x1bnn", Text: "hello\u202eolleh", Time: "not a time", Lost: 3})
	if want := "(3 messages were lost: they came faster than they could be shown)\n" + `a\x1bnn: hello\u202eolleh` + "\n"; got != want {
		t.Errorf("%q; want %q", got, want)
	}
}

func TestClientChatOnATerminal(t *testing.T) {
	b := newClientBox(t, "", "")
	c := newClientTerminal(t, 24, 80, "chat")
	c.until("> ")
	c.keys("hello everybody\r")
	c.until("ann: hello everybody\r\n> ")
	c.keys("half a li")
	c.until("half a li")
	b.srv.chat.say("operator", "we close\x1b[2J")
	c.until("operator: we close?[2J\r\n> half a li")
	c.keys("ne\r")
	c.until("ann: half a line\r\n")
	c.until("> ")
	c.keys("\x04")
	c.ended(0)
	c = newClientTerminal(t, 24, 80, "chat")
	c.until("> ")
	c.keys("\x03")
	c.ended(130)
	c = newClientTerminal(t, 24, 80, "chat")
	c.until("> ")
	b.cut()
	c.until("berth chat: 127.0.0.1: ")
	c.ended(3)
}
