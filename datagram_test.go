package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"
)

var (
	datagramTestTime = time.Date(2026, 3, 4, 5, 6, 7, 89000, time.UTC)
	datagramTestInfo = helloInfo{
		Name: "box", Version: "1.2.3", Ports: helloPorts{Control: 2121, TLS: 990},
		Fingerprint: "sha256:" + strings.Repeat("0123456789abcdef", 4),
	}
	farAway = netip.MustParseAddrPort("203.0.113.9:40000")
)

// datagramCounts is a place for a service to count to.
type datagramCounts struct {
	mu sync.Mutex
	n  map[string]int
}

func (c *datagramCounts) add(service, result string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n == nil {
		c.n = map[string]int{}
	}
	c.n[service+" "+result]++
}

func (c *datagramCounts) get(key string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n[key]
}

func newTestDatagramService() (*datagramService, *datagramCounts) {
	counts := &datagramCounts{}
	d := newDatagramService(func() helloInfo { return datagramTestInfo }, counts.add, slog.New(slog.DiscardHandler))
	d.now = func() time.Time { return datagramTestTime }
	d.rate = newDatagramLimiter(datagramTestTime)
	return d, counts
}

func TestAnswerDatagram(t *testing.T) {
	d, _ := newTestDatagramService()
	ctime := datagramTestTime.Local().Format("Mon Jan _2 15:04:05 2006") + "\n"
	const rfc3339 = "2026-03-04T05:06:07.000089Z\n"
	hello, err := json.Marshal(datagramTestInfo)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ req, service, want string }{
		{"", "rfc868", "\xedR<?"},
		{"time", "time", ctime},
		{"TIME\r\n", "time", ctime},
		{"time\x00", "time", ctime},
		{"\n", "time", ctime},
		{"date", "time", ctime},
		{"what o'clock is it?", "time", ctime},
		{"zeit, grüß Gott", "time", ctime},
		{"time zone", "time", ctime},
		{"timer", "time", ctime},
		{"echos", "time", ctime},
		{"time rfc3339", "rfc3339", rfc3339},
		{"time  RFC3339\n", "rfc3339", rfc3339},
		{"echo hello  world\n", "echo", "hello  world\n"},
		{"echo  two", "echo", " two"},
		{"echo", "echo", ""},
		{"echo\n", "echo", "\n"},
		{"Echo \x00\xff\x80", "echo", "\x00\xff\x80"},
		{"upper hello, World 1\n", "upper", "HELLO, WORLD 1\n"},
		{"upper grüße", "upper", "GRÜßE"},
		{"upper \u0250\u0131\xff\xc3", "upper", "\u0250I\xff\xc3"}, // U+2C6F would be longer, I is shorter
		{"hello", "hello", string(hello) + "\n"},
		{"hello" + strings.Repeat("\x00", 100), "hello", string(hello) + "\n"},

		// Not requests: answers of services like this one, and other protocols.
		{ctime, "", ""},
		{strings.ToUpper(ctime), "", ""},
		{"you said: " + ctime, "", ""},
		{rfc3339, "", ""},
		{"\xed\x51\x80\xff", "", ""},
		{"\x01\x02abc", "", ""},
		{"abc\x00def", "", ""},
		{"\x1b[2J", "", ""},
	} {
		got, service := answerDatagram(nil, []byte(tt.req), datagramTestTime, d.hello)
		if service != tt.service || string(got) != tt.want {
			t.Errorf("answerDatagram(%q) = %q, %q; want %q, %q", tt.req, got, service, tt.want, tt.service)
		}
	}
}

func TestDatagramSourceAllowed(t *testing.T) {
	const own = 2121
	for _, tt := range []struct {
		src  string
		want bool
	}{
		{"192.0.2.1:40000", true},
		{"192.0.2.1:1024", true},
		{"192.0.2.1:123", true},
		{"192.0.2.1:1023", false},
		{"192.0.2.1:19", false},
		{"192.0.2.1:7", false},
		{"192.0.2.1:0", false},
		{"192.0.2.1:2121", false},
		{"127.0.0.1:2121", false},
		{"127.0.0.1:37", false},
		{"[2001:db8::1]:40000", true},
		{"[fe80::1%lo]:40000", true},
		{"[::1]:2121", false},
		{"0.0.0.0:40000", false},
		{"[::]:40000", false},
		{"224.0.0.1:40000", false},
		{"255.255.255.255:40000", false},
		{"240.0.0.1:40000", false},
		{"[ff02::1]:40000", false},
	} {
		src := netip.MustParseAddrPort(tt.src)
		if got := datagramSourceAllowed(src.Addr(), src.Port(), own); got != tt.want {
			t.Errorf("datagramSourceAllowed(%s) = %v; want %v", tt.src, got, tt.want)
		}
	}
	d, counts := newTestDatagramService()
	mapped := netip.MustParseAddrPort("[::ffff:224.0.0.1]:40000")
	if _, _, ok := d.answer(nil, []byte("time"), false, mapped, own); ok || counts.get("none refused") != 1 {
		t.Error("an IPv4-mapped multicast source was answered")
	}
}

// Off the machine hello has to be paid for with padding; on it, not.
func TestDatagramHelloNeedsPadding(t *testing.T) {
	d, counts := newTestDatagramService()
	if _, _, ok := d.answer(nil, []byte("hello"), false, farAway, 2121); ok || counts.get("hello malformed") != 1 {
		t.Error("a bare hello from another machine was answered")
	}
	padded := append([]byte("hello "), make([]byte, 100)...)
	if _, service, ok := d.answer(nil, padded, false, farAway, 2121); !ok || service != "hello" {
		t.Error("a padded hello from another machine was not answered")
	}
	if _, _, ok := d.answer(nil, []byte("hello"), false, netip.MustParseAddrPort("[::ffff:127.0.0.1]:40000"), 2121); !ok {
		t.Error("a bare hello from this machine was not answered")
	}
}

func TestDatagramHelloFollowsChanges(t *testing.T) {
	d, _ := newTestDatagramService()
	info := datagramTestInfo
	d.info = func() helloInfo { return info }
	first := d.hello()
	info.Fingerprint = "sha256:new"
	var got helloInfo
	if err := json.Unmarshal(d.hello(), &got); err != nil || got != info {
		t.Errorf("after a change hello is %+v, %v; before it was %s", got, err, first)
	}
}

func TestDatagramRateLimit(t *testing.T) {
	d, counts := newTestDatagramService()
	now := datagramTestTime
	d.now = func() time.Time { return now }
	burst := func(src string) (answered int) {
		for range 2 * datagramBurst {
			if _, _, ok := d.answer(nil, []byte("time"), false, netip.MustParseAddrPort(src), 2121); ok {
				answered++
			}
		}
		return answered
	}
	for _, tt := range []struct {
		step time.Duration
		src  string
		want int
	}{
		{0, "203.0.113.1:5000", datagramBurst},
		{0, "203.0.113.200:6000", 0},             // the same /24
		{0, "[::ffff:203.0.113.3]:6000", 0},      // and the same again
		{0, "127.0.0.1:5000", 2 * datagramBurst}, // this machine is not limited
		{time.Second, "203.0.113.7:5000", datagramRate},
		{time.Hour, "203.0.113.7:5000", datagramBurst},
		{0, "[2001:db8:1:2::1]:5000", datagramBurst},
		{0, "[2001:db8:1:2:ffff::1]:5000", 0}, // the same /64
	} {
		now = now.Add(tt.step)
		if got := burst(tt.src); got != tt.want {
			t.Errorf("after %v from %s: %d answered; want %d", tt.step, tt.src, got, tt.want)
		}
	}
	if counts.get("time limited") == 0 {
		t.Error("nothing counted as limited")
	}
}

// checkDatagramBounds states what must hold for any request at all.
func checkDatagramBounds(t *testing.T, d *datagramService, req []byte) {
	answer, service, ok := d.answer(nil, req, false, farAway, 2121)
	if ok && len(answer) > 3*len(req)+28 {
		t.Fatalf("%q: %s answers %d bytes to %d", req, service, len(answer), len(req))
	}
	if ok && (service == "echo" || service == "upper") && len(answer) >= len(req) {
		t.Fatalf("%q: %s does not shrink", req, service)
	}
	if ok && service == "upper" && utf8.Valid(req) && !utf8.Valid(answer) {
		t.Fatalf("%q: upper broke UTF-8: %q", req, answer)
	}
	// Two services answering each other, even without any limit, come to an
	// end: each echo or upper strips its word, and three more answers can follow.
	for steps := len(req)/5 + 4; ; steps-- {
		answer, service, ok := d.compose(nil, req, false)
		if !ok {
			break
		}
		if steps == 0 {
			t.Fatalf("two services go on answering each other: %s %q", service, answer)
		}
		req = answer
	}
}

func FuzzDatagram(f *testing.F) {
	for _, s := range []string{
		"", "time", "time rfc3339", "echo hi", "echo echo echo", "upper straße \u0250", "hello",
		"hello " + strings.Repeat("x", 200), "upper echo time", "Mon Jan  2 15:04:05 2006\n", "\x00", "{}", "\xed\x51\x80\xff",
		"echo upper echo", "12:34:56", "echo 12:34:5", "upper hello ",
	} {
		f.Add([]byte(s))
	}
	d, _ := newTestDatagramService()
	d.count = func(string, string) {}
	now := datagramTestTime
	d.now = func() time.Time { return now }
	f.Fuzz(func(t *testing.T, req []byte) {
		now = now.Add(time.Minute) // no limit from what was asked before
		checkDatagramBounds(t, d, req)
	})
}

// A foreign service that sends everything back, with words of its own before
// it, does not get a second answer.
func TestDatagramForeignEchoEnds(t *testing.T) {
	d, _ := newTestDatagramService()
	for _, foreign := range []func([]byte) []byte{
		bytes.Clone,
		bytes.ToUpper,
		func(b []byte) []byte { return append([]byte("you said: "), b...) },
	} {
		req := []byte("any word")
		for steps := 0; ; steps++ {
			answer, _, ok := d.compose(nil, req, false)
			if !ok {
				break
			}
			if steps == 3 {
				t.Fatalf("still answering: %q", answer)
			}
			req = foreign(answer)
		}
	}
}

func TestDatagramAnswerDoesNotAllocate(t *testing.T) {
	d, _ := newTestDatagramService()
	d.count = func(string, string) {}
	src := netip.MustParseAddrPort("[::1]:40000")
	dst := make([]byte, 0, 1024)
	for _, req := range []string{"", "time", "time rfc3339", "echo hi", "upper grün", "hello", "\xff", "word"} {
		in := []byte(req)
		if n := testing.AllocsPerRun(100, func() {
			d.answer(dst, in, false, src, 2121)
			d.answer(dst, in, false, farAway, 2121)
		}); n != 0 {
			t.Errorf("%q: %v allocations, want 0", req, n)
		}
	}
}

// startDatagramService serves pc until the test ends.
func startDatagramService(t testing.TB, d *datagramService, pc net.PacketConn) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- d.serve(ctx, pc) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve = %v; want nil after its context ended", err)
		}
		if _, err := pc.WriteTo([]byte("x"), pc.LocalAddr()); err == nil {
			t.Error("serve left its socket open")
		}
	})
}

func askDatagram(t testing.TB, c net.Conn, req string) string {
	t.Helper()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Write([]byte(req)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, datagramMax)
	n, err := c.Read(buf)
	if err != nil {
		t.Fatalf("%.20q: no answer: %v", req, err)
	}
	return string(buf[:n])
}

func TestDatagramServeUDP(t *testing.T) {
	for _, tt := range []struct{ network, listen, ask string }{
		{"udp4", "127.0.0.1:0", "127.0.0.1"},
		{"udp6", "[::1]:0", "::1"},
		// A connected client hears only the address it asked, which is not the
		// one the kernel would choose to answer from.
		{"udp4", "0.0.0.0:0", "127.0.0.2"},
		{"udp", "[::]:0", "127.0.0.3"},
		{"udp", "[::]:0", "::1"},
	} {
		t.Run(tt.listen+" "+tt.ask, func(t *testing.T) {
			pc, err := net.ListenPacket(tt.network, tt.listen)
			if err != nil {
				if strings.Contains(tt.listen, "::") {
					t.Skipf("no IPv6 here: %v", err)
				}
				t.Fatal(err)
			}
			d, counts := newTestDatagramService()
			port := pc.LocalAddr().(*net.UDPAddr).Port
			c, err := net.Dial("udp", net.JoinHostPort(tt.ask, fmt.Sprint(port)))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			// The first waits in the socket before it is served, as the one
			// does that makes systemd start the daemon.
			c.Write([]byte("echo early"))
			startDatagramService(t, d, pc)
			c.SetDeadline(time.Now().Add(10 * time.Second))
			early := make([]byte, 10)
			if n, err := c.Read(early); err != nil || string(early[:n]) != "early" {
				t.Fatalf("datagram from before serve: %q, %v", early[:n], err)
			}
			if got := askDatagram(t, c, "time rfc3339"); got != "2026-03-04T05:06:07.000089Z\n" {
				t.Errorf("time rfc3339 = %q", got)
			}
			if got := askDatagram(t, c, ""); binary.BigEndian.Uint32([]byte(got)) != uint32(datagramTestTime.Unix()+rfc868Epoch) {
				t.Errorf("RFC 868 time = %x", got)
			}
			if got := askDatagram(t, c, "echo "); got != "" {
				t.Errorf("echo of nothing = %q", got)
			}
			big := strings.Repeat("x", 60000)
			if got := askDatagram(t, c, "upper "+big); got != strings.ToUpper(big) {
				t.Errorf("upper of %d bytes gave %d", len(big), len(got))
			}
			// What gets no answer does not hold up what comes after it.
			c.Write([]byte("\xff\xff"))
			if got := askDatagram(t, c, "hello"); !strings.HasPrefix(got, `{"name":"box",`) {
				t.Errorf("hello = %q", got)
			}
			if counts.get("none malformed") != 1 || counts.get("rfc3339 ok") != 1 {
				t.Errorf("counts = %v", counts.n)
			}
		})
	}
}

func TestDatagramServeUDPDoesNotAllocate(t *testing.T) {
	for _, listen := range []string{"127.0.0.1:0", "0.0.0.0:0"} { // without and with IP_PKTINFO
		pc, err := net.ListenPacket("udp4", listen)
		if err != nil {
			t.Fatal(err)
		}
		d, _ := newTestDatagramService()
		d.count = func(string, string) {}
		startDatagramService(t, d, pc)
		c, err := net.DialUDP("udp4", nil, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: pc.LocalAddr().(*net.UDPAddr).Port})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(10 * time.Second))
		req, buf := []byte("time"), make([]byte, 100)
		// AllocsPerRun counts the whole process, so the server's share too.
		if n := testing.AllocsPerRun(200, func() {
			c.Write(req)
			if _, err := c.Read(buf); err != nil {
				t.Fatal(err)
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations for a datagram, want 0", listen, n)
		}
	}
}

func TestDatagramServeUnix(t *testing.T) {
	dir := t.TempDir()
	addr := func(name string) *net.UnixAddr {
		return &net.UnixAddr{Name: filepath.Join(dir, name), Net: "unixgram"}
	}
	pc, err := net.ListenUnixgram("unixgram", addr("service"))
	if err != nil {
		t.Fatal(err)
	}
	d, counts := newTestDatagramService()
	startDatagramService(t, d, pc)

	// One that did not bind cannot be answered; one that never reads must not
	// stop the loop.
	nameless, err := net.DialUnix("unixgram", nil, addr("service"))
	if err != nil {
		t.Fatal(err)
	}
	defer nameless.Close()
	nameless.Write([]byte("time"))
	deaf, err := net.DialUnix("unixgram", addr("deaf"), addr("service"))
	if err != nil {
		t.Fatal(err)
	}
	defer deaf.Close()
	deaf.SetDeadline(time.Now().Add(10 * time.Second))
	for asks := 0; counts.get("time error") == 0; asks++ {
		if asks == 100_000 {
			t.Fatal("the kernel keeps 100,000 answers for a client that never reads")
		}
		if _, err := deaf.Write([]byte("time")); err != nil {
			t.Fatal(err)
		}
	}
	deaf.Close() // gives back our send buffer

	c, err := net.DialUnix("unixgram", addr("client"), addr("service"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got := askDatagram(t, c, "echo over here"); got != "over here" {
		t.Errorf("echo = %q", got)
	}
	if got := askDatagram(t, c, ""); len(got) != 4 {
		t.Errorf("empty datagram: %q", got)
	}
	if got := askDatagram(t, c, "hello"); !strings.HasPrefix(got, `{"name":"box",`) {
		t.Errorf("hello = %q", got)
	}
	if counts.get("time refused") != 1 {
		t.Errorf("counts = %v; want one refused", counts.n)
	}
}

// A bug in one answer costs that answer.
func TestDatagramPanicIsContained(t *testing.T) {
	d, counts := newTestDatagramService()
	d.info = func() helloInfo { panic("bug") }
	if _, _, ok := d.compose(nil, []byte("hello"), false); ok || counts.get("none error") != 1 {
		t.Error("a panic became an answer, or was not counted")
	}
}

func TestDatagramServeReportsForeignClose(t *testing.T) {
	pc, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	pc.Close()
	d, _ := newTestDatagramService()
	if err := d.serve(context.Background(), pc); err == nil {
		t.Error("serve on a closed socket = nil")
	}
}

func BenchmarkDatagramUDP(b *testing.B) {
	pc, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	d, _ := newTestDatagramService()
	d.count = func(string, string) {}
	startDatagramService(b, d, pc)
	c, err := net.Dial("udp4", pc.LocalAddr().String())
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	req, buf := []byte("time"), make([]byte, 100)
	b.ReportAllocs()
	for b.Loop() {
		c.Write(req)
		if _, err := c.Read(buf); err != nil {
			b.Fatal(err)
		}
	}
}
