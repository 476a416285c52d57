"""The code an agent would write to analyse the penguins, cell by cell; one session runs them in order."""

LOAD = """
import pandas as pd
pd.set_option("display.width", 120, "display.max_columns", 20)
penguins = pd.read_csv("penguins.csv")
print(f"{len(penguins)} rows, {penguins.shape[1]} columns")
print("\\nmissing values:")
print(penguins.isna().sum()[lambda n: n > 0].to_string())
penguins.head()
"""

CLEAN = """
measures = ["bill_length_mm", "bill_depth_mm", "flipper_length_mm", "body_mass_g"]
clean = penguins.dropna(subset=measures).copy()
unknown = clean["sex"].isna().sum()
clean = clean.dropna(subset=["sex"]).astype({"species": "category", "island": "category", "sex": "category"})
clean.to_csv("penguins_clean.csv", index=False)
dropped = len(penguins) - len(clean) - unknown
print(f"dropped {dropped} rows without measurements and {unknown} of unknown sex; {len(clean)} left")
clean[measures].describe().round(1)
"""

GROUP = """
summary = (
    clean.groupby(["species", "sex"], observed=True)[measures]
    .mean().round(1)
    .assign(count=clean.groupby(["species", "sex"], observed=True).size())
)
summary
"""

SCATTER = """
import matplotlib.pyplot as plt
fig, ax = plt.subplots(figsize=(7, 5))
for species, group in clean.groupby("species", observed=True):
    ax.scatter(group["bill_length_mm"], group["bill_depth_mm"], label=species, alpha=0.7, s=22)
ax.set(title="Bills of three penguin species", xlabel="bill length (mm)", ylabel="bill depth (mm)")
ax.legend()
plt.show()
"""

BOXES = """
fig, ax = plt.subplots(figsize=(7, 5))
groups = clean.groupby(["species", "sex"], observed=True)["body_mass_g"]
labels = [f"{species}\\n{sex}" for (species, sex), _ in groups]
ax.boxplot([values for _, values in groups], tick_labels=labels)
ax.set(title="Body mass by species and sex", ylabel="body mass (g)")
ax.grid(axis="y", alpha=0.3)
plt.show()
"""

FIT = """
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.metrics import classification_report, mean_absolute_error, r2_score
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

columns = ["flipper_length_mm", "bill_depth_mm", "species", "sex"]
train, test = train_test_split(clean, test_size=0.25, random_state=0, stratify=clean["species"])
one_hot = (OneHotEncoder(drop="first"), ["species", "sex"])
prepare = make_column_transformer(one_hot, remainder=StandardScaler())
mass = make_pipeline(prepare, LinearRegression()).fit(train[columns], train["body_mass_g"])
predicted = mass.predict(test[columns])
error = mean_absolute_error(test["body_mass_g"], predicted)
r2 = r2_score(test["body_mass_g"], predicted)
print(f"body mass: R2 {r2:.3f}, mean error {error:.0f} g on {len(test)} birds the model has not seen")

species = make_pipeline(StandardScaler(), LogisticRegression()).fit(train[measures], train["species"])
print(classification_report(test["species"], species.predict(test[measures]), digits=3))
pd.Series(mass[-1].coef_, [name.split("__")[1] for name in mass[0].get_feature_names_out()]).round(1)
"""

RESIDUALS = """
fig, ax = plt.subplots(figsize=(7, 5))
ax.scatter(test["body_mass_g"], predicted, alpha=0.7, s=22)
ends = [test["body_mass_g"].min(), test["body_mass_g"].max()]
ax.plot(ends, ends, color="grey", linewidth=1)
ax.set(title="Predicted and measured body mass", xlabel="measured (g)", ylabel="predicted (g)")
plt.show()
"""

CELLS = (
    ("load", LOAD),
    ("clean", CLEAN),
    ("group", GROUP),
    ("draw bills", SCATTER),
    ("draw body mass", BOXES),
    ("fit models", FIT),
    ("draw prediction", RESIDUALS),
)
