"""Early warning: from irregular measurements to a risk, an alarm that keeps a promise, a stream and a report."""

# %% stays of six channels at irregular times; a third of them end in an event. Simulated, so that the best is known
from gpmoe.early_warning import (
    AlarmBudget,
    AlarmPolicy,
    AlarmStream,
    StayModel,
    choose_threshold,
    optimal_risk,
    scorecard,
    simulate_stays,
)

law = StayModel(prevalence=0.3, shift=0.8, correlation_after=0.7, ramp=24.0, lead=12.0, lengths=(24, 72), earliest=20)
train, promise, test = (simulate_stays(n, model=law, seed=seed).series for seed, n in enumerate((400, 400, 200)))
print(train)

# %% fit: a multi-task Gaussian process fills the gaps from the past alone, a causal network reads it
from gpmoe.estimators.early_warning_classifier import EarlyWarningClassifier

model = EarlyWarningClassifier("tcn", hidden=32, n_blocks=3, max_epochs=15, random_state=0).fit(train)
risk = model.predict_proba(test)

# %% scores, beside those of the clock, which knows the time since admission alone, and of the best there can be
for name, score in {"model": risk, "clock": test.grid_times, "optimal": optimal_risk(law, test)}.items():
    card = scorecard(test, score)
    print(f"{name:>8}: AUROC {card.time_auroc}, AUPRC {card.time_auprc}")

# %% a threshold with a guarantee: at least 50 % of alarms are true on new stays, with a risk of 10 % of being wrong
choice = choose_threshold(
    promise, model.predict_proba(promise), AlarmPolicy(0.5, latching=True), AlarmBudget(precision=0.5, risk=0.1)
)
print(choice.reason)
policy = choice.policy or AlarmPolicy(0.5, latching=True)

# %% the same risks as measurements come in, one at a time; which to order next?
stay = test[[8]]
stream = AlarmStream(model.stream(), every=1.0, policy=policy)
for time, channel, value in zip(stay.time, stay.channel, stay.value, strict=True):
    for verdict in stream.update("bed 7", time, stay.channel_names[channel], value):
        if verdict.alarm:
            print(f"alarm at hour {verdict.time:g}, risk {verdict.risk:.2f}; event at {stay.event_time[0]:g}")
print(model.next_measurement(stay, float(stay.grid_times[-1])))

# %% one page with curves, calibration, alarms and three stays
from gpmoe.plotting import report

report(model, test, "early_warning.html", policy=policy, time_unit="hours", title="Simulated stays")
print("early_warning.html: the report")
