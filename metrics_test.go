package main

import (
	"bytes"
	"compress/gzip"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
)

var updateMetrics = flag.Bool("update-metrics", false, "write testdata/metrics/scrape.txt anew")

// exercisedMetrics returns metrics on which every method was called, so that
// every family has a sample.
func exercisedMetrics() *metrics {
	m := newMetrics("1.2.3", "abcdef0", metricSources{
		Usage: func() []userUsage {
			return []userUsage{
				{Name: "ann", QuotaBytes: 2 << 30, UsedBytes: 12345, QuotaFiles: 1000, UsedFiles: 7},
				{Name: "cam\"1", UsedBytes: 5},
			}
		},
		StateFree:         func() (uint64, error) { return 123456789, nil },
		CertificateExpiry: func() time.Time { return time.Unix(2000000000, 0) },
		Bans:              func() int { return 3 },
	})
	m.sessionStarted("ftp")
	m.sessionStarted("ftp")
	m.sessionSwitched("ftp", "frames")
	m.sessionStarted("local")
	m.sessionEnded("local", "idle")
	m.sessionRefused("ftps")
	m.login("password", "ok")
	m.login("password", "failed")
	m.transferStarted("upload")
	m.transferStarted("download")
	m.bytes("ann", "upload", "ftp").Add(4096)
	m.bytes("ann", "upload", "ftp").Add(0)
	m.bytes("ann", "upload", "ftp").Add(-1)
	byteCounter{}.Add(1)
	m.transferEnded("ann", "upload", "ftp", "ok", 250*time.Millisecond)
	m.command("RETR", 226)
	m.command("RETR", 550)
	m.command("", 500)
	m.command("NOOP", 0)
	m.commandRun("snap", "ok", 2*time.Second)
	m.datagram("time", "ok")
	m.quotaRejected("ann")
	m.dataConnection("passive", "ok")
	m.tlsResumption("resumed")
	m.missingCloseNotify.Inc()
	m.panics.Inc()
	m.acceptErrors.Inc()
	return m
}

func getPage(t *testing.T, h http.Handler, method, path string, header ...string) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequest(method, path, nil)
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// ownLines keeps the lines of a scrape that are about berth_ metrics.
func ownLines(scrape string) string {
	var b strings.Builder
	for line := range strings.Lines(scrape) {
		name := strings.TrimPrefix(strings.TrimPrefix(line, "# HELP "), "# TYPE ")
		if strings.HasPrefix(name, "berth_") {
			b.WriteString(line)
		}
	}
	return b.String()
}

func TestScrapeGolden(t *testing.T) {
	// In the bubble it is always 2000-01-01, so the reload time stamp is fixed.
	synctest.Test(t, func(t *testing.T) {
		h := exercisedMetrics().handler(nil, nil)
		w := getPage(t, h, "GET", "/metrics")
		if w.Code != http.StatusOK {
			t.Fatalf("GET /metrics = %d: %s", w.Code, w.Body)
		}
		got := regexp.MustCompile(`goversion="[^"]*"`).ReplaceAllString(ownLines(w.Body.String()), `goversion="go"`)
		const golden = "testdata/metrics/scrape.txt"
		if *updateMetrics {
			if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("the scrape differs from %s; read the new one with -update-metrics and git diff:\n%s", golden, got)
		}
	})
}

// Every name the contract lists must be in a scrape, and a daemon's own
// collectors beside them.
func TestScrapeHasContractNames(t *testing.T) {
	scrape := getPage(t, exercisedMetrics().handler(nil, nil), "GET", "/metrics").Body.String()
	for _, name := range []string{
		"berth_build_info", "berth_sessions", "berth_sessions_total", "berth_logins_total", "berth_bans",
		"berth_transfers_total", "berth_transfer_bytes_total", "berth_transfer_duration_seconds",
		"berth_transfers_active", "berth_quota_bytes", "berth_quota_used_bytes", "berth_quota_files",
		"berth_quota_used_files", "berth_quota_rejected_total", "berth_commands_total",
		"berth_command_duration_seconds", "berth_datagrams_total", "berth_control_commands_total",
		"berth_config_reload_success", "berth_config_reload_timestamp_seconds",
		"berth_certificate_expiry_timestamp_seconds", "berth_state_free_bytes",
		"berth_data_connections_total", "berth_tls_data_sessions_total", "berth_tls_missing_close_notify_total",
		"berth_panics_total", "berth_accept_errors_total", "go_goroutines", "process_open_fds",
	} {
		for _, kind := range []string{"HELP", "TYPE"} {
			if !strings.Contains(scrape, "# "+kind+" "+name+" ") {
				t.Errorf("no %s line for %s", kind, name)
			}
		}
	}
}

func TestScrapeLints(t *testing.T) {
	w := getPage(t, exercisedMetrics().handler(nil, nil), "GET", "/metrics")
	problems, err := promlint.New(strings.NewReader(ownLines(w.Body.String()))).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

// A source that fails or panics costs its own gauge and nothing else.
func TestScrapeSurvivesBadSources(t *testing.T) {
	m := newMetrics("v", "r", metricSources{
		Usage:             func() []userUsage { panic("bug") },
		StateFree:         func() (uint64, error) { return 0, errors.New("gone") },
		CertificateExpiry: func() time.Time { return time.Time{} },
		Bans:              func() int { return 4 },
	})
	h := m.handler(nil, nil)
	getPage(t, h, "GET", "/metrics")
	w := getPage(t, h, "GET", "/metrics")
	body := w.Body.String()
	if w.Code != http.StatusOK || !strings.Contains(body, "\nberth_bans 4\n") {
		t.Errorf("GET /metrics = %d without berth_bans 4:\n%s", w.Code, ownLines(body))
	}
	for _, absent := range []string{"berth_quota_", "berth_state_free_bytes", "berth_certificate_expiry"} {
		for line := range strings.Lines(body) {
			if strings.HasPrefix(line, absent) && !strings.HasPrefix(line, "berth_quota_rejected_total") {
				t.Errorf("sample of a failing source: %s", line)
			}
		}
	}
	if !regexp.MustCompile(`(?m)^berth_panics_total [12]$`).MatchString(body) {
		t.Error("a panicking source was not counted in berth_panics_total")
	}
}

func TestConfigReloadedRefusedKeepsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMetrics("v", "r", metricSources{})
		h := m.handler(nil, nil)
		expect := func(success, stamp string) {
			t.Helper()
			body := getPage(t, h, "GET", "/metrics").Body.String()
			for _, line := range []string{"berth_config_reload_success " + success, "berth_config_reload_timestamp_seconds " + stamp} {
				if !strings.Contains(body, "\n"+line+"\n") {
					t.Errorf("scrape lacks %q", line)
				}
			}
		}
		expect("1", "9.466848e+08")
		time.Sleep(100 * time.Second) // the bubble's clock, not ours
		m.configReloaded(false)
		expect("0", "9.466848e+08")
		m.configReloaded(true)
		expect("1", "9.466849e+08")
	})
}

// Strangers who reach a label despite the callers' care meet a bound.
func TestPairCounterIsBounded(t *testing.T) {
	m := newMetrics("v", "r", metricSources{})
	for i := range 10 * metricPairLimit {
		m.command(fmt.Sprintf("X%d\xff", i), 500)
	}
	body := getPage(t, m.handler(nil, nil), "GET", "/metrics").Body.String()
	if n := strings.Count(body, "\nberth_control_commands_total{"); n > metricPairLimit+1 {
		t.Errorf("%d series of berth_control_commands_total, want at most %d", n, metricPairLimit+1)
	}
	want := fmt.Sprintf(`berth_control_commands_total{code_class="5xx",verb="other"} %d`, 9*metricPairLimit)
	if !strings.Contains(body, want) {
		t.Errorf("scrape lacks %q", want)
	}
}

func TestHotCountersDoNotAllocate(t *testing.T) {
	m := newMetrics("v", "r", metricSources{})
	b := m.bytes("ann", "download", "ftp")
	if n := testing.AllocsPerRun(100, func() {
		m.command("RETR", 226)
		m.datagram("time", "ok")
		b.Add(65536)
	}); n != 0 {
		t.Errorf("%v allocations, want 0", n)
	}
}

func TestMetricsConcurrently(t *testing.T) {
	m := newMetrics("v", "r", metricSources{Usage: func() []userUsage { return []userUsage{{Name: "ann"}} }})
	h := m.handler(nil, nil)
	const workers, rounds = 8, 200
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			b := m.bytes("ann", "upload", "ftp")
			for i := range rounds {
				m.sessionStarted("ftp")
				m.command(fmt.Sprintf("V%d", i%20), 200)
				m.transferStarted("upload")
				b.Add(3)
				m.transferEnded("ann", "upload", "ftp", "ok", time.Millisecond)
				m.sessionEnded("ftp", "ok")
				if i%100 == w {
					getPage(t, h, "GET", "/metrics")
				}
			}
		})
	}
	wg.Wait()
	body := getPage(t, h, "GET", "/metrics").Body.String()
	for _, want := range []string{
		`berth_transfer_bytes_total{direction="upload",protocol="ftp",user="ann"} 4800`,
		`berth_control_commands_total{code_class="2xx",verb="V7"} 80`,
		`berth_sessions{protocol="ftp"} 0`,
		`berth_transfers_active{direction="upload"} 0`,
		`berth_transfer_duration_seconds_count{direction="upload",protocol="ftp"} 1600`,
	} {
		if !strings.Contains(body, want+"\n") {
			t.Errorf("scrape lacks %q", want)
		}
	}
}

func TestHTTPPages(t *testing.T) {
	down := errors.New("draining")
	up := newMetrics("1.2.3", "r", metricSources{}).handler(nil, func(w io.Writer) { io.WriteString(w, "sessions <3>\n") })
	notReady := newMetrics("1.2.3", "r", metricSources{}).handler(func() error { return down }, nil)
	for _, tt := range []struct {
		h            http.Handler
		method, path string
		code         int
		body         string // contained
	}{
		{up, "GET", "/healthz", 200, "ok\n"},
		{up, "HEAD", "/healthz", 200, ""},
		{up, "GET", "/readyz", 200, "ready\n"},
		{notReady, "GET", "/readyz", 503, "not ready: draining\n"},
		{notReady, "GET", "/healthz", 200, "ok\n"},
		{notReady, "GET", "/metrics", 200, "berth_build_info"},
		{up, "GET", "/", 200, "version  1.2.3\n"},
		{up, "GET", "/", 200, "sessions &lt;3&gt;"},
		{up, "GET", "/nothing", 404, ""},
		{up, "GET", "/metrics/", 404, ""},
		{up, "GET", "/../metrics", 404, ""},
		{up, "POST", "/metrics", 405, ""},
		{up, "DELETE", "/", 405, ""},
	} {
		w := getPage(t, tt.h, tt.method, tt.path)
		if w.Code != tt.code || !strings.Contains(w.Body.String(), tt.body) {
			t.Errorf("%s %s = %d %q; want %d with %q", tt.method, tt.path, w.Code, w.Body, tt.code, tt.body)
		}
		if w.Code == 405 && w.Header().Get("Allow") != "GET, HEAD" {
			t.Errorf("%s %s: Allow = %q", tt.method, tt.path, w.Header().Get("Allow"))
		}
	}
	if page := getPage(t, up, "GET", "/").Body.String(); strings.Contains(page, "<script") {
		t.Error("the status page has a script")
	}
}

func TestScrapeGzip(t *testing.T) {
	w := getPage(t, exercisedMetrics().handler(nil, nil), "GET", "/metrics", "Accept-Encoding", "gzip")
	if got := w.Header().Get("Content-Encoding"); got != "gzip" {
		t.Fatalf("Content-Encoding = %q", got)
	}
	z, err := gzip.NewReader(bytes.NewReader(w.Body.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(z)
	if err != nil || !bytes.Contains(body, []byte("berth_build_info")) {
		t.Errorf("unzipped scrape: %v, %d bytes", err, len(body))
	}
}

// A scraper that asks for OpenMetrics gets the classic format: berth_sessions
// and berth_sessions_total would be one family there.
func TestScrapeNeverOpenMetrics(t *testing.T) {
	w := getPage(t, exercisedMetrics().handler(nil, nil), "GET", "/metrics", "Accept", "application/openmetrics-text; version=1.0.0")
	if got := w.Header().Get("Content-Type"); w.Code != 200 || !strings.HasPrefix(got, "text/plain") {
		t.Errorf("GET /metrics = %d, Content-Type %q", w.Code, got)
	}
}

func BenchmarkMetricsCommand(b *testing.B) {
	m := newMetrics("v", "r", metricSources{})
	b.ReportAllocs()
	for b.Loop() {
		m.command("RETR", 226)
	}
}

func BenchmarkNewMetrics(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		newMetrics("v", "r", metricSources{})
	}
}
