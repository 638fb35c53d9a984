package results

import "testing"

func TestFigureOf(t *testing.T) {
	f := FigureOf("x", "ms", []float64{4, 1, 3, 2, 5})
	if f.Low != 2 || f.Median != 3 || f.High != 4 || f.Rounds != 5 {
		t.Errorf("quartiles of 1 to 5: %+v", f)
	}
	if f := FigureOf("x", "ms", []float64{1, 2}); f.Median != 1.5 {
		t.Errorf("median of 1 and 2: %v", f.Median)
	}
	if f := FigureOf("x", "ms", nil); f.Rounds != 0 || f.Median != 0 {
		t.Errorf("no values: %+v", f)
	}
}

func TestRatio(t *testing.T) {
	for _, c := range []struct {
		name       string
		now, kept  Ratio
		met, worse bool
	}{
		{"time as before", Ratio{Value: 1, Goal: 1}, Ratio{Value: 1}, true, false},
		{"longer by half", Ratio{Value: 1.6, Goal: 1}, Ratio{Value: 1}, false, true},
		{"shorter", Ratio{Value: 0.5, Goal: 1}, Ratio{Value: 1}, true, false},
		{"less throughput", Ratio{Value: 0.6, Goal: 0.9, More: true}, Ratio{Value: 1, More: true}, false, true},
		{"more throughput", Ratio{Value: 2, Goal: 0.9, More: true}, Ratio{Value: 1, More: true}, true, false},
		{"no goal", Ratio{Value: 9}, Ratio{Value: 9}, true, false},
	} {
		if met := c.now.Met(); met != c.met {
			t.Errorf("%s: met is %v", c.name, met)
		}
		if worse := c.now.Worse(c.kept) > 1.5; worse != c.worse {
			t.Errorf("%s: worse by half is %v", c.name, worse)
		}
	}
}
